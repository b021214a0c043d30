"""Videos from an image model without training: the first frame's latents, moved (Khachatryan et al. 2023, section 3.3).

Text2Video-Zero's other half, attention to the first frame, is `keys="first"` in models.attention.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from vidjax.diffusion.samplers import Denoiser, Sampler, ddim, forward_variance, sample
from vidjax.diffusion.schedule import Schedule
from vidjax.errors import InputError

Interpolation = Literal["nearest", "bilinear"]
Times = Float[np.ndarray, " n"]


def latents_in_motion(
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "b 1 h w c"],
    times: Times,
    frames: int,
    velocity: tuple[ArrayLike, ArrayLike],
    key: Key[Array, ""],
    interpolation: Interpolation = "nearest",
) -> Float[Array, "b {frames} h w c"]:
    """Algorithm 1, lines 2 to 6: the latents at T1 = times[0] of one frame become those of `frames` frames there.

    DDIM carries them over `times` to T0 = times[-1]; there frame k is moved by k `velocity` and noised back to T1.
    Frame 0 stays what it is. `velocity` (down, right) is in latents a frame, the direction in which the content goes;
    the paper's lambda delta is its negative.
    """
    at_t0 = sample(denoise, schedule, x, times, len(times) - 1, ddim(), key)
    moved = translate(jnp.repeat(at_t0, frames, 1), displacements(frames, velocity), interpolation)
    noised = noise_between(schedule, moved, times[-1], times[0], key)
    return jnp.concatenate([x, noised[:, 1:]], 1)


def zero_shot(
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "b 1 h w c"],
    times: Times,
    frames: int,
    velocity: tuple[ArrayLike, ArrayLike],
    key: Key[Array, ""],
    *,
    t1: float = 0.96,
    t0: float = 0.9,
    sampler: Sampler | None = None,
    interpolation: Interpolation = "nearest",
    progress: Callable[[int], Any] | None = None,
) -> Float[Array, "b {frames} h w c"]:
    """All of algorithm 1: from the noise of one frame to a video, over the decreasing `times` of `schedule.timesteps`.

    At T1 the share `t1` of the steps is still to come, at T0 `t0`; the defaults are the paper's times 941 and 881 in 50
    steps of 1000. `denoise` takes one frame as well as `frames`. `sampler` (default DDIM) carries the first frame to T1
    and all of them from there on. Raises InputError if no step lies between T1 and T0.
    """
    steps, sampler = len(times) - 1, sampler or ddim()
    first, last = (steps - round(share * steps) for share in (t1, t0))
    if not 0 <= first < last < steps:
        raise InputError(f"t1={t1} and t0={t0} of {steps} steps have none between them; take more steps")
    before, during, after = jax.random.split(key, 3)
    x = sample(denoise, schedule, x, times[: first + 1], first, sampler, before)
    part = times[first : last + 1]
    x = latents_in_motion(denoise, schedule, x, part, frames, velocity, during, interpolation)
    return sample(denoise, schedule, x, times[first:], steps - first, sampler, after, progress)


def displacements(frames: int, velocity: tuple[ArrayLike, ArrayLike]) -> Float[Array, "{frames} 2"]:
    """Of each frame against the first, (down, right): k times the velocity (eq. 5)."""
    return jnp.arange(frames, dtype=jnp.float32)[:, None] * jnp.asarray(velocity, jnp.float32)


def translate(
    x: Float[Array, "b t h w c"], shifts: Float[Array, "t 2"], interpolation: Interpolation = "nearest"
) -> Float[Array, "b t h w c"]:
    """Frame k moved (down, right) by shifts[k]; what comes in at the edges is the picture mirrored there.

    Edges and "nearest" are as in the released code, which keeps the variance of the noise; "bilinear" follows fractions
    of a latent, and averages: noise half way between four latents keeps a quarter of its variance.
    """

    def along(frame, shift, axis):
        n = frame.shape[axis]
        place = jnp.arange(n) - shift
        if interpolation == "nearest":
            return jnp.take(frame, mirrored(jnp.ceil(place - 0.5), n), axis)
        low = jnp.floor(place)
        w = (place - low).reshape([-1 if i == axis else 1 for i in range(frame.ndim)])
        return (1 - w) * jnp.take(frame, mirrored(low, n), axis) + w * jnp.take(frame, mirrored(low + 1, n), axis)

    def one(frame, shift):
        return along(along(frame, shift[0], 0), shift[1], 1)

    return jax.vmap(jax.vmap(one), (0, None))(x, shifts)


def mirrored(place: Float[Array, " n"], size: int) -> Int[Array, " n"]:
    """Whole places of any value as indices into a row that goes on as its mirror image: -1 is 0, `size` is the last."""
    i = jnp.mod(place.astype(jnp.int32), 2 * size)
    return jnp.where(i < size, i, 2 * size - 1 - i)


def noise_between(
    schedule: Schedule, x: Float[Array, "b t *rest"], t: ArrayLike, t_noisier: ArrayLike, key: Key[Array, ""]
) -> Float[Array, "b t *rest"]:
    """A draw from q(x at t_noisier | x at t), the forward process (eq. 6); t's are scalars."""
    t, t_noisier = jnp.float32(t), jnp.float32(t_noisier)
    scale = schedule.alpha(t_noisier) / schedule.alpha(t)
    return scale * x + jnp.sqrt(forward_variance(schedule.path, t_noisier, t)) * jax.random.normal(key, x.shape)
