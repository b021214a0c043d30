"""A sampler is a step of a few lines from (x, t) to (x, t_next); `sample` drives any of them, compiled once.

Every step is written in x0 and eps, with alpha, sigma at t and alpha', sigma' at t_next (code: a, s and a1, s1), so it
serves any schedule and any prediction. Writing x' = alpha' x0 + sigma' eps instead of dividing by alpha keeps pure noise
(alpha = 0) and clean data (sigma = 0) finite.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vidjax.diffusion.schedule import Schedule

Denoiser = Callable[[Array, Array], tuple[Array, Array]]


class Sampler(NamedTuple):
    """`init(x) -> carry`; `step(denoise, schedule, x, t, t_next, carry, key) -> (x, carry)` with scalar t and t_next."""

    init: Callable[[Array], Any]
    step: Callable[..., tuple[Array, Any]]


def sample(
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "b t *rest"],
    times: Float[Array | np.ndarray, "capacity"],
    num_steps: int | Int[Array, ""],
    sampler: Sampler,
    key: Array,
    progress: Callable | None = None,
) -> Float[Array, "b t *rest"]:
    """Carry x from times[0] to times[num_steps]; entries of `times` after that are padding.

    Starts from x of standard deviation sigma(times[0]) at pure noise. `denoise` gets the time as `[b, t]`. Under jit
    with a traced `num_steps` one compilation serves any number of steps. `progress(steps_done)` is called on the host.
    """
    times = jnp.asarray(times)
    denoise_at = lambda x, t: denoise(x, jnp.broadcast_to(t, x.shape[:2]))

    def body(i, state):
        x, carry = state
        x, carry = sampler.step(denoise_at, schedule, x, times[i], times[i + 1], carry, jax.random.fold_in(key, i))
        if progress is not None:
            jax.debug.callback(progress, i + 1)
        return x, carry

    x = x.astype(jnp.float32)
    return jax.lax.fori_loop(0, num_steps, body, (x, sampler.init(x)))[0]


def _forward_variance(schedule, t, t_next):
    """Variance of q(xt | x'), beta_t for neighbours: sigma_{t|s}^2 of Kingma et al. 2021, section A.1."""
    (a, s), (a1, s1) = schedule.path(t), schedule.path(t_next)
    return jnp.maximum(s**2 - (a / a1) ** 2 * s1**2, 0)


def ddpm(variance: str = "small") -> Sampler:
    """Ancestral sampling, Ho et al. 2020 algorithm 2, eq. 7. `variance`: "small" is the posterior's, "large" beta_t."""

    def step(denoise, schedule, x, t, t_next, carry, key):
        (a, s), (a1, s1) = schedule.path(t), schedule.path(t_next)
        x0, _ = denoise(x, t)
        beta = _forward_variance(schedule, t, t_next)
        mean = (a / a1) * (s1 / s) ** 2 * x + a1 * beta / s**2 * x0
        noise = beta * (s1 / s) ** 2 if variance == "small" else beta * (t_next > schedule.clean)
        return mean + jnp.sqrt(noise) * jax.random.normal(key, x.shape), carry

    return Sampler(lambda x: (), step)


def ddim(eta: float = 0.0) -> Sampler:
    """Song et al. 2021 eq. 12 and 16. eta = 0 is deterministic and also runs backwards (t_next > t); eta = 1 is DDPM.

    With eta = 0 this is at once Euler's method for the probability-flow ODE in x / alpha (their eq. 14), Karras et al.'s
    Euler step, and for rectified flow x + (t' - t)(eps - x0).
    """

    def step(denoise, schedule, x, t, t_next, carry, key):
        (_, s), (a1, s1) = schedule.path(t), schedule.path(t_next)
        x0, eps = denoise(x, t)
        if not eta:
            return a1 * x0 + s1 * eps, carry
        variance = eta**2 * _forward_variance(schedule, t, t_next) * (s1 / s) ** 2
        noise = jax.random.normal(key, x.shape)
        return a1 * x0 + jnp.sqrt(s1**2 - variance) * eps + jnp.sqrt(variance) * noise, carry

    return Sampler(lambda x: (), step)


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "euler": ddim}
