"""Loss spikes: a step whose gradient is an outlier is left out, as if its batch had not been."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vidjax.errors import InputError

WINDOW = 64  # steps whose gradients are the measure, those left out among them: so it follows a lasting change
LEAST = 16  # of them, before any step is left out


class SkipState(NamedTuple):
    """`norms` are of the last gradients, NaN where there was none yet."""

    inner: Any
    norms: Float[Array, " n"]
    count: Int[Array, ""]
    skipped: Int[Array, ""]


def skip_spikes(inner: optax.GradientTransformation, factor: float) -> optax.GradientTransformation:
    """`inner`, but neither parameters nor moments change where the gradient's global norm is more than `factor` times
    the median of the last `WINDOW`. What is not finite is no outlier: it stops the run. Raises InputError."""
    if factor <= 1:
        raise InputError(f"config.optimizer.skip_spikes={factor} is not above 1: how many times the median norm")

    def init(params: Any) -> SkipState:
        zero = jnp.zeros((), jnp.int32)
        return SkipState(inner.init(params), jnp.full(WINDOW, jnp.nan), zero, zero)

    def update(grads: Any, state: SkipState, params: Any = None) -> tuple[Any, SkipState]:
        norm = optax.global_norm(grads)
        high = norm > factor * jnp.nanmedian(state.norms)
        spike = high & (state.count >= LEAST) & jnp.isfinite(norm)
        keep = partial(jax.tree.map, partial(jnp.where, spike))
        updates, new = inner.update(grads, state.inner, params)
        norms = state.norms.at[state.count % WINDOW].set(norm)
        still = jax.tree.map(jnp.zeros_like, updates)
        return keep(still, updates), SkipState(keep(state.inner, new), norms, state.count + 1, state.skipped + spike)

    return optax.GradientTransformation(init, update)
