"""The random numbers of a training step: a function of seed and step, one set per example, drawn by name."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

# Where the keys of these names lie in a tree of splits: they are those that were once drawn by position, as
# `fold_in(key, i)` is the i-th key of `split(key, n)` for every n. Any other name has a place of its own by its hash.
PLACES: dict[str, tuple[int, ...]] = {
    "times": (0,),
    "posterior": (1,),
    "noise": (2,),
    "dropped": (3,),
    "frame_masks": (4,),
    "known_levels": (5,),
    "own_images": (6,),
    "anchors": (7,),
    "lowres.levels": (8, 0),
    "lowres.noise": (8, 1),
    "instance": (0,),
    "prior": (1,),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draws:
    """A step's number and its random numbers, one set per example, so that the loss does not depend on how a batch is
    split over devices or over time. `uniforms` in [0, 1) are stratified over the batch (Kingma et al. 2021, appendix
    I.1)."""

    keys: Key[Array, " b"]
    uniforms: Float[Array, " b"]
    step: Int[Array, ""]

    def named(self, name: str) -> "Draws":
        """The set of this name, a function of the name and of this set alone: a further name changes no other one.

        Sets of different names are independent, but for those two of `PLACES` that share a place ("times" with
        "instance", "posterior" with "prior"), which no objective asks for together. The stratified uniforms stay with
        the first place; others have new ones, which are not stratified.
        """
        draws = self
        for place in PLACES.get(name, (2**31 | zlib.crc32(name.encode()) >> 1,)):
            draws = draws._at(place)
        return draws

    def _at(self, place: int) -> "Draws":
        keys = _fold_in(self.keys, place)
        uniforms = jax.vmap(jax.random.uniform)(_fold_in(keys, 0)) if place else self.uniforms
        return Draws(keys, uniforms, self.step)

    def normal(self, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
        """Standard normal numbers of this shape for each example."""
        return jax.vmap(lambda key: jax.random.normal(key, shape))(self.keys)


def _fold_in(keys: Key[Array, " b"], place: int) -> Key[Array, " b"]:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, jnp.uint32(place))


def draws_at(seed_key: Key[Array, ""], step: Array, batch_size: int) -> Draws:
    """The draws of a step: a function of (seed, step) alone, so a resumed run repeats them."""
    examples, strata = jax.random.split(jax.random.fold_in(seed_key, step))
    uniforms = (jnp.arange(batch_size) + jax.random.uniform(strata)) / batch_size
    return Draws(jax.random.split(examples, batch_size), uniforms, jnp.asarray(step))
