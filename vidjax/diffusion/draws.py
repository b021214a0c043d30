"""The random numbers of a training step: a function of seed and step, one set per example."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draws:
    """A step's number and random numbers, one set an example: so the loss depends neither on how a batch is split over
    devices nor over time. `uniforms` in [0, 1) are stratified over the batch (Kingma et al. 2021, appendix I.1)."""

    keys: Key[Array, " b"]
    uniforms: Float[Array, " b"]
    step: Int[Array, ""]

    def split(self, num: int) -> tuple["Draws", ...]:
        """`num` sets with independent keys; the uniforms stay with the first and are made anew for the others."""
        keys = jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(self.keys)
        fresh = [jax.vmap(jax.random.uniform)(jax.vmap(jax.random.fold_in, (0, None))(k, 0)) for k in keys[1:]]
        return tuple(Draws(k, u, self.step) for k, u in zip(keys, [self.uniforms, *fresh]))

    def normal(self, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
        """Standard normal, `shape` an example."""
        return jax.vmap(lambda key: jax.random.normal(key, shape))(self.keys)


def draws_at(seed_key: Key[Array, ""], step: Array, batch_size: int) -> Draws:
    """The draws of a step: a function of (seed, step) alone, so a resumed run repeats them."""
    examples, strata = jax.random.split(jax.random.fold_in(seed_key, step))
    uniforms = (jnp.arange(batch_size) + jax.random.uniform(strata)) / batch_size
    return Draws(jax.random.split(examples, batch_size), uniforms, jnp.asarray(step))
