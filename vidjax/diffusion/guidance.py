"""Wrappers: each takes a denoiser `(xt, t [b, t]) -> (x0, eps)` and returns one, so that they compose."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from vidjax.diffusion.samplers import Denoiser
from vidjax.diffusion.schedule import Schedule


def classifier_free(
    schedule: Schedule,
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: ArrayLike,
    *,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
    prediction: str = "v",
) -> Denoiser:
    """uncond + scale (cond - uncond) (Ho & Salimans 2022); scale 1 is the conditional alone, bit for bit.

    `scale` is a number, one a frame `[t]`, or `[b, t]`. `interval` (low, high) in the schedule's time: guided inside
    only (Kynkaanniemi et al. 2024). `rescale` is phi of Lin et al. 2024 eq. 15-16, acting on the `prediction` (theirs:
    "v"; with the network's own it is what `diffusers` does). A step in which nothing is guided skips `unconditional`.
    """

    def denoise(xt, t):
        low, high = interval or (-jnp.inf, jnp.inf)
        w = jnp.where((t >= low) & (t <= high), jnp.broadcast_to(jnp.asarray(scale, jnp.float32), t.shape), 1)
        cond = conditional(xt, t)
        uncond = jax.lax.cond(jnp.any(w != 1), lambda: unconditional(xt, t), lambda: cond)
        w = _like(w, xt)
        x0, eps = (c + (w - 1) * (c - u) for c, u in zip(cond, uncond))
        if not rescale:
            return x0, eps
        positive = schedule.target(*cond, t, prediction)
        guided = schedule.target(x0, eps, t, prediction)
        rescaled = guided * _std(positive) / _std(guided)
        return schedule.x0_eps(rescale * rescaled + (1 - rescale) * guided, xt, t, prediction)

    return denoise


def threshold(schedule: Schedule, denoise: Denoiser, limit: float = 1.0, percentile: float | None = None) -> Denoiser:
    """Keep x0 within +-limit. With a `percentile` (such as 99.5) dynamic thresholding, Saharia et al. 2022 section 2.3:
    x0 is clipped at that percentile of its own |x0| in each sample, if above `limit`, and scaled back to `limit`."""

    def bounded(xt, t):
        x0, _ = denoise(xt, t)
        edge = jnp.float32(limit)
        if percentile is not None:
            edge = jnp.percentile(jnp.abs(x0), percentile, axis=tuple(range(1, x0.ndim)), keepdims=True)
            edge = jnp.maximum(edge, limit)
        return schedule.x0_eps(jnp.clip(x0, -edge, edge) * (limit / edge), xt, t, "x0")

    return bounded


def known_frames(
    schedule: Schedule,
    denoise: Denoiser,
    x0: Float[Array, "b t *rest"],
    mask: Bool[Array, "b t"] | Float[Array, "b t"],
    *,
    level: ArrayLike | None = None,
    eps: Float[Array, "b t *rest"] | None = None,
    show: bool = True,
) -> Denoiser:
    """Frames with mask 1 are known: every step is told that their x0 is the one given, so sampling ends exactly on it.

    The network sees them at the time `level` (default `schedule.clean`), noised with `eps` if given, and the others at
    t. With `show=False` it sees them at t like the others: clamping alone. To guide against a branch that must not see
    the frames, wrap the conditional one, guide, and wrap the result again with `show=False`.
    """
    known = mask > 0.5
    level = jnp.asarray(schedule.clean if level is None else level, jnp.float32)
    shown = x0 if eps is None else schedule.q_sample(x0, eps, jnp.broadcast_to(level, mask.shape))

    def clamped(xt, t):
        here = _like(known, xt)
        seen = (jnp.where(here, shown, xt), jnp.where(known, level, t)) if show else (xt, t)
        own, found = schedule.x0_eps(x0, xt, t, "x0"), denoise(*seen)
        return jnp.where(here, own[0], found[0]), jnp.where(here, own[1], found[1])

    return clamped


def _like(w, x):
    return w.reshape(w.shape + (1,) * (x.ndim - w.ndim))


def _std(x):
    return jnp.std(x, axis=tuple(range(1, x.ndim)), keepdims=True)
