"""AdamW with a learning-rate schedule, clipping, weight decay on kernels alone, and steps left out at loss spikes."""

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vidjax.errors import InputError, check_range
from vidjax.settings import choose, construct

SCHEDULES = {
    "constant": lambda peak, warmup, steps: optax.constant_schedule(peak),
    "linear": lambda peak, warmup, steps: optax.linear_schedule(peak, 0.0, max(steps - warmup, 1)),
    "cosine": lambda peak, warmup, steps: optax.cosine_decay_schedule(peak, max(steps - warmup, 1)),
}
REST = "rest"  # name of the group for parameters that match no other
WINDOW = 64  # steps whose gradients are the measure, those left out among them: so it follows a lasting change
LEAST = 16  # of them, before any step is left out


def learning_rate_schedule(peak: float, name: str, warmup: int, steps: int) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup` steps, then by name to the last of `steps`."""
    after = choose(name, SCHEDULES, "config.optimizer.schedule")(peak, warmup, steps)
    return optax.join_schedules([optax.linear_schedule(peak / max(warmup, 1), peak, warmup), after], [warmup])


def decays(params: Mapping[str, Any]) -> dict[str, bool]:
    """Weight decay shrinks matrices, kernels and adapters; biases, norms, embeddings and positions stay out."""
    return {
        path: getattr(value, "ndim", 0) > 1 and path.endswith(("kernel", "lora_down", "lora_up"))
        for path, value in params.items()  # those of another group have no value
    }


def labels(params: Mapping[str, Any], groups: Mapping[str, Any]) -> dict[str, str]:
    """The group of each path: the first that it is under, or `REST`. Raises InputError for a group without any."""
    found = {path: next((name for name in groups if path.startswith(f"{name}.")), REST) for path in params}
    if empty := groups.keys() - set(found.values()):
        raise InputError(f"config.optimizer.groups.{min(empty)}: no parameter is under that path; remove it")
    return found


def make_optimizer(
    *,
    steps: int,
    learning_rate: float = 1e-4,
    schedule: str = "constant",
    warmup: int = 0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    clip: float | None = 1.0,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    skip_spikes: float | None = None,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) on a dict of parameters; `clip` bounds the global norm of the gradient.

    groups: parameters under a path have settings of their own, such as {"discriminator": {"learning_rate": 1e-4}}, for
    the rest those of all hold; gradients are clipped by group. skip_spikes: leave out steps whose gradient, before it
    is clipped, is so many times the usual one (see `without_spikes`). Raises InputError for a path without parameters.
    """
    if groups:
        common = dict(
            steps=steps,
            learning_rate=learning_rate,
            schedule=schedule,
            warmup=warmup,
            b1=b1,
            b2=b2,
            eps=eps,
            weight_decay=weight_decay,
            clip=clip,
        )
        made = {name: construct(make_optimizer, {**common, **own}, "optimizer.groups") for name, own in groups.items()}
        whole = optax.multi_transform({**made, REST: make_optimizer(**common)}, lambda params: labels(params, groups))
    else:
        check_range("config.optimizer.", 0, warmup=warmup, eps=eps, clip=clip, weight_decay=weight_decay)
        check_range("config.optimizer.", 0, sys.float_info.max, learning_rate=learning_rate)
        check_range("config.optimizer.", 0, 0.999999, b1=b1, b2=b2)
        rate = learning_rate_schedule(learning_rate, schedule, warmup, steps)
        adamw = optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decays)
        whole = optax.chain(optax.clip_by_global_norm(clip), adamw) if clip else adamw
    return without_spikes(whole, skip_spikes) if skip_spikes else whole


class SkipState(NamedTuple):
    """`norms` are of the last gradients, NaN where there was none yet."""

    inner: Any
    norms: Float[Array, " n"]
    count: Int[Array, ""]
    skipped: Int[Array, ""]


def without_spikes(inner: optax.GradientTransformation, factor: float) -> optax.GradientTransformation:
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
