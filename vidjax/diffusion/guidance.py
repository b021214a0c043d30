"""Wrappers: each takes a denoiser `(xt, t [b, t]) -> (x0, eps)` and returns one, so that they compose."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from vidjax.diffusion.samplers import Denoiser
from vidjax.diffusion.schedule import Schedule
from vidjax.errors import InputError


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
        w = _weights(scale, t, interval)
        cond = conditional(xt, t)
        uncond = jax.lax.cond(jnp.any(w != 1), lambda: unconditional(xt, t), lambda: cond)
        return _guided(schedule, cond, uncond, w, xt, t, rescale, prediction)

    return denoise


def at_once(
    schedule: Schedule,
    both: Denoiser,
    scale: ArrayLike,
    *,
    conditional: Denoiser | None = None,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
    prediction: str = "v",
) -> Denoiser:
    """`classifier_free` as one call of the network. `both` answers twice the batch, each example under its conditions
    and then under none: so its conditions are `in_turn(conditions, null conditions)`.

    A step in which nothing is guided asks `conditional` alone; without one, every step asks `both`.
    """

    def pair(xt, t):
        answer = both(*in_turn((xt, t), (xt, t)))
        return tuple(tuple(part.reshape(-1, 2, *part.shape[1:])[:, i] for part in answer) for i in range(2))

    def denoise(xt, t):
        w = _weights(scale, t, interval)
        ask = lambda: pair(xt, t)
        if conditional is None:
            cond, uncond = ask()
        else:
            alone = conditional
            cond, uncond = jax.lax.cond(jnp.any(w != 1), ask, lambda: (alone(xt, t),) * 2)
        return _guided(schedule, cond, uncond, w, xt, t, rescale, prediction)

    return denoise


def in_turn(first: Any, second: Any) -> Any:
    """Two batches as one, an example of each in turn: cut over devices, an example's pair stays where it was."""
    join = lambda a, b: jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])
    return jax.tree.map(join, first, second)


def _weights(scale, t, interval):
    """[b, t]; 1 where nothing is guided."""
    low, high = interval or (-jnp.inf, jnp.inf)
    return jnp.where((t >= low) & (t <= high), jnp.broadcast_to(jnp.asarray(scale, jnp.float32), t.shape), 1)


def _guided(schedule, cond, uncond, w, xt, t, rescale, prediction):
    w = _like(w, xt)
    x0, eps = (c + (w - 1) * (c - u) for c, u in zip(cond, uncond))
    if not rescale:
        return x0, eps
    positive = schedule.target(*cond, t, prediction)
    guided = schedule.target(x0, eps, t, prediction)
    rescaled = guided * _std(positive) / _std(guided)
    return schedule.x0_eps(rescale * rescaled + (1 - rescale) * guided, xt, t, prediction)


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
    mask: Bool[Array, "b t *pixels"] | Float[Array, "b t *pixels"],
    *,
    level: ArrayLike | None = None,
    eps: Float[Array, "b t *rest"] | None = None,
    show: bool = True,
) -> Denoiser:
    """Frames with mask 1 are known: every step is told that their x0 is the one given, so sampling ends exactly on it.

    The network sees them at the time `level` (default `schedule.clean`), noised with `eps` if given, and the others at
    t. With `show=False` it sees them at t like the others: clamping alone. To guide against a branch that must not see
    the frames, wrap the conditional one, guide, and wrap the result again with `show=False`. A mask `[b, t, h, w]` is
    of pixels: frames that are known in part are clamped there, and seen at t.
    """
    known = mask > 0.5
    whole = known.all(tuple(range(2, known.ndim)))
    level = jnp.asarray(schedule.clean if level is None else level, jnp.float32)
    shown = x0 if eps is None else schedule.q_sample(x0, eps, jnp.broadcast_to(level, whole.shape))

    def clamped(xt, t):
        here = _like(known, xt)
        seen = (jnp.where(_like(whole, xt), shown, xt), jnp.where(whole, level, t)) if show else (xt, t)
        own, found = schedule.x0_eps(x0, xt, t, "x0"), denoise(*seen)
        return jnp.where(here, own[0], found[0]), jnp.where(here, own[1], found[1])

    return clamped


def from_known(
    conditional: Denoiser,
    free: Denoiser,
    mask: Float[Array, "b t"],
    scale: ArrayLike,
) -> Denoiser:
    """free + scale (conditional - free): unconditional guidance (He et al. 2022, section 3.3; their w is scale - 1).

    `conditional` sees the known frames, as `known_frames` shows them; `free` is told of none. It must not find them in
    xt either, so where frames are known its own answer carries xt on, bit for bit: frames that might have been. Put
    the known ones in when sampling has ended.
    """

    def guided(xt, t):
        own = free(xt, t)
        here = _like(mask > 0.5, xt)
        x0, eps = (jnp.where(here, u, u + scale * (c - u)) for c, u in zip(conditional(xt, t), own))
        return x0, eps

    return guided


def reconstruction(
    schedule: Schedule,
    denoise: Denoiser,
    x0: Float[Array, "b t *rest"],
    mask: Float[Array, "b t"],
    weight: ArrayLike,
) -> Denoiser:
    """Known frames for a model that was not trained with any (Ho et al. 2022, Video Diffusion Models, eq. 7).

    The x0 of an unknown frame moves by - weight alpha / 2 times the gradient, by its xt, of ||known - their x0||^2.
    Known frames carry on as noised ones, and sampling ends on them. Where weight is sigma^2 / alpha^2 over the variance
    of the known frames given xt, Gaussian data is answered exactly; a weight of 0 is the replacement method.
    """
    known = mask > 0.5

    def guided(xt, t):
        here = _like(known, xt)

        def miss(xt):
            found, _ = denoise(xt, t)
            return jnp.where(here, jnp.square(x0 - found), 0).sum(), found

        gradient, found = jax.grad(miss, has_aux=True)(xt)
        alpha, _ = schedule.levels(t, xt)
        return schedule.x0_eps(found - weight * alpha / 2 * gradient, xt, t, "x0")

    return known_frames(schedule, guided, x0, mask, show=False)


def keep(
    schedule: Schedule,
    denoise: Denoiser,
    x0: Float[Array, "b t h w c"],
    mask: Bool[Array, " *s"] | Float[Array, " *s"],
) -> Denoiser:
    """An edit that stays inside `mask`, 1 where it may go: everywhere else sampling ends on `x0` bit for bit.

    The mask is `[t]` (a range of frames) or `[t, h, w]`, with the batch in front or without. The network sees all of xt
    at t, so that it need not have been trained with known frames.
    """
    batched = mask if mask.ndim in (2, 4) else jnp.broadcast_to(mask, (x0.shape[0], *mask.shape))
    return known_frames(schedule, denoise, x0, batched <= 0.5, show=False)


def regions(denoisers: Sequence[Denoiser], masks: Sequence[Float[Array, "..."]]) -> Denoiser:
    """Each denoiser answers in its region: their mean weighted by `masks` (MultiDiffusion, Bar-Tal et al. 2023, eq. 5).

    One mask a denoiser, `[t]` or `[t, h, w]`, with the batch in front or without; they are divided by their sum, and
    where all are 0 the first denoiser answers, the background's. One subject each, they do not mix (VideoMage).
    Raises InputError if their numbers differ.
    """
    if len(denoisers) != len(masks):
        raise InputError(f"{len(denoisers)} denoisers come with {len(masks)} masks; give one mask a denoiser")
    masks = [m if m.ndim in (2, 4) else m[None] for m in masks]

    def blended(xt, t):
        weights = [jnp.broadcast_to(_like(m, xt), (*xt.shape[:-1], 1)) for m in masks]
        total = sum(weights)
        weights[0] = jnp.where(total > 0, weights[0], 1)
        total = jnp.where(total > 0, total, 1)
        answers = [denoise(xt, t) for denoise in denoisers]
        none = jnp.zeros_like(xt)
        x0, eps = (sum((w / total * part for w, part in zip(weights, parts)), none) for parts in zip(*answers))
        return x0, eps

    return blended


def in_chunks(denoise: Denoiser, frames: int, overlap: int) -> Denoiser:
    """A clip of any length in chunks of `frames` frames, one after the other: memory is that of one chunk.

    Neighbours share at least `overlap` frames, whose answers are averaged, each weighing more the farther it is from
    its chunk's ends. Every chunk has the clip's first frame before it, so that attention to the first frame finds the
    same one. Raises InputError unless 0 <= overlap < frames.
    """
    if not 0 <= overlap < frames:
        raise InputError(f"chunks of {frames} frames cannot overlap by {overlap}; take 0 to {frames - 1}")

    def chunked(xt, t):
        length = xt.shape[1]
        if length <= frames:
            return denoise(xt, t)
        count = -(-(length - overlap) // (frames - overlap))
        starts = jnp.round(jnp.linspace(0, length - frames, count)).astype(jnp.int32)
        weight = 1.0 + jnp.minimum(jnp.arange(frames), jnp.arange(frames)[::-1])

        def add(total, start):
            own = start + jnp.arange(frames)
            seen = jnp.concatenate([jnp.zeros(1, jnp.int32), own])
            found = denoise(xt[:, seen], t[:, seen])
            put = lambda sum_, part: sum_.at[:, own].add(part[:, 1:] * _like(weight[None], part))
            return (*map(put, total[:2], found), total[2].at[own].add(weight)), None

        zero = jnp.zeros(xt.shape, jnp.float32)
        (x0, eps, total), _ = jax.lax.scan(add, (zero, zero, jnp.zeros(length)), starts)
        return x0 / _like(total[None], x0), eps / _like(total[None], eps)

    return chunked


def _like(w, x):
    return w.reshape(w.shape + (1,) * (x.ndim - w.ndim))


def _std(x):
    return jnp.std(x, axis=tuple(range(1, x.ndim)), keepdims=True)
