"""A sampler is a step of a few lines from (x, t) to (x, t_next); `sample` drives any of them, compiled once.

Every step is written in x0 and eps, with alpha, sigma at t (code: a, s) and alpha', sigma' at t_next (a1, s1), so it
serves any schedule and any prediction. x' = alpha' x0 + sigma' eps instead of a division by alpha keeps pure noise
(alpha = 0) and clean data (sigma = 0) finite.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vidjax.diffusion.schedule import Schedule
from vidjax.errors import InputError

PURE = 1e-3  # alpha up to which xt is pure noise
Denoiser = Callable[[Array, Array], tuple[Array, Array]]


class Sampler(NamedTuple):
    """`init(x) -> carry`; `step(denoise, schedule, x, t, t_next, carry, key) -> (x, carry)`, t and t_next scalars."""

    init: Callable[[Array], Any]
    step: Callable[..., tuple[Array, Any]]


def sample(
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "b t *rest"],
    times: Float[Array | np.ndarray, "capacity"],
    num_steps: int | np.integer | Int[Array, ""],
    sampler: Sampler,
    key: Array,
    progress: Callable | None = None,
) -> Float[Array, "b t *rest"]:
    """Carry x from times[0] to times[num_steps]; entries of `times` after that are padding.

    Starts from x of standard deviation std(times[0]), pure noise. `denoise` gets the time as `[b, t]`. Under jit
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


def forward_variance(schedule, t, t_next):
    """Variance of q(xt | x'), beta_t for neighbours: sigma_{t|s}^2 of Kingma et al. 2021, section A.1."""
    (a, s), (a1, s1) = schedule.path(t), schedule.path(t_next)
    return jnp.maximum(s**2 - (a / a1) ** 2 * s1**2, 0)


def ddpm(variance: str = "small") -> Sampler:
    """Ancestral sampling, Ho et al. 2020 algorithm 2, eq. 7. `variance`: "small" is the posterior's, "large" beta_t."""
    if variance not in ("small", "large"):
        raise InputError(f"DDPM's variance is {variance!r}; choose small or large")

    def step(denoise, schedule, x, t, t_next, carry, key):
        (a, s), (a1, s1) = schedule.path(t), schedule.path(t_next)
        x0, _ = denoise(x, t)
        beta = forward_variance(schedule, t, t_next)
        mean = (a / a1) * (s1 / s) ** 2 * x + a1 * beta / s**2 * x0
        noise = beta * (s1 / s) ** 2 if variance == "small" else beta * (t_next > schedule.clean)
        return mean + jnp.sqrt(noise) * jax.random.normal(key, x.shape), carry

    return Sampler(lambda x: (), step)


def ddim(eta: float = 0.0) -> Sampler:
    """Song et al. 2021 eq. 12, 16. eta = 0 is deterministic and also runs backwards (t_next > t); eta = 1 is DDPM."""

    def step(denoise, schedule, x, t, t_next, carry, key):
        (_, s), (a1, s1) = schedule.path(t), schedule.path(t_next)
        x0, eps = denoise(x, t)
        if not eta:
            return a1 * x0 + s1 * eps, carry
        variance = eta**2 * forward_variance(schedule, t, t_next) * (s1 / s) ** 2
        noise = jax.random.normal(key, x.shape)
        return a1 * x0 + jnp.sqrt(jnp.maximum(s1**2 - variance, 0)) * eps + jnp.sqrt(variance) * noise, carry

    return Sampler(lambda x: (), step)


def ddim_inverse() -> Sampler:
    """DDIM from clean data up to noise, eps asked at the level aimed at: Tune-A-Video's and `diffusers`' inversion.

    Run it over the reversed `timesteps`. Unlike `ddim` it never asks the network at `clean`, a level it was not
    trained on. Both return under `ddim` to where they came from, with an error that falls with the number of steps.
    """

    def step(denoise, schedule, x, t, t_next, carry, key):
        (a, s), (a1, s1) = schedule.path(t), schedule.path(t_next)
        _, eps = denoise(x, t_next)
        return a1 * (x - s * eps) / a + s1 * eps, carry

    return Sampler(lambda x: (), step)


def euler() -> Sampler:
    """Euler's method for the probability-flow ODE. The step is DDIM's, whether one integrates x / alpha over
    sigma / alpha (Song et al. 2021 eq. 14, Karras et al. 2022) or rectified flow's eps - x0 over t."""
    return ddim(eta=0.0)


def heun() -> Sampler:
    """Karras et al. 2022 algorithm 1: d(x / alpha) = eps d(sigma / alpha), eps averaged over both ends of the step.

    Two evaluations a step; one where the step starts at pure noise (as tables on the cosine all but do) or ends clean,
    both out of the trapezoid's reach.
    """

    def step(denoise, schedule, x, t, t_next, carry, key):
        (a, s), (a1, s1) = schedule.path(t), schedule.path(t_next)
        x0, eps = denoise(x, t)
        x1 = a1 * x0 + s1 * eps
        correct = lambda: x1 + (s1 - a1 * s / a) * (denoise(x1, t_next)[1] - eps) / 2
        return jax.lax.cond((a > PURE) & (t_next != schedule.clean), correct, lambda: x1), carry

    return Sampler(lambda x: (), step)


def _exponential(schedule, x, x0, t, t_next):
    """The exact solution of the ODE while x0 is constant: DDIM from x0 alone. Lu et al. 2022 (++) eq. 9, k = 1."""
    (a, s), (a1, s1) = schedule.path(t), schedule.path(t_next)
    return (s1 / s) * x + (a1 - a * s1 / s) * x0


def _extrapolation(schedule, t_last, t, t_next):
    """h / (2 h_last): x0 is continued to the middle of the step. 0 in the first step (t_last is nan) and the last."""
    h, h_last = schedule.logsnr(t_next) - schedule.logsnr(t), schedule.logsnr(t) - schedule.logsnr(t_last)
    return jnp.where(jnp.isnan(t_last) | (t_next == schedule.clean), 0, h / (2 * h_last))


def dpmpp_2m() -> Sampler:
    """DPM-Solver++ (2M), Lu et al. 2022 (++) algorithm 2; the carry is the last step's x0 and time."""

    def step(denoise, schedule, x, t, t_next, carry, key):
        last, t_last = carry
        x0, _ = denoise(x, t)
        w = _extrapolation(schedule, t_last, t, t_next)
        return _exponential(schedule, x, x0 + w * (x0 - last), t, t_next), (x0, jnp.asarray(t, jnp.float32))

    return Sampler(lambda x: (jnp.zeros_like(x), jnp.float32(jnp.nan)), step)


def unipc() -> Sampler:
    """UniPC-2 with B(h) = e^h - 1, Zhao et al. 2023 on x0: DPM-Solver++ (2M) whose every step is corrected as soon as
    x0 at its end is known, at no further evaluation.

    The carry is (x, x0, t) of the last step's start and (x0, t) of the one before.
    """

    def corrected(schedule, x, x0, t, carry):
        x_last, last, t_last, older, t_older = carry
        l, l_last, l_older = (schedule.logsnr(t) / 2 for t in (t, t_last, t_older))
        h, r, second = l - l_last, (l_older - l_last) / (l - l_last), ~jnp.isnan(t_older)
        b = jnp.expm1(-h)
        phi_2 = -b / h - 1  # the paper's phi-functions times powers of h, then R rho = b solved for two unknowns
        phi_3 = -phi_2 / h - 1 / 2
        rho_older = jnp.where(second, (phi_2 - 2 * phi_3) / (b * (1 - r)), 0)
        rho = jnp.where(second, phi_2 / b - rho_older, 1 / 2)
        slope = jnp.where(second, (older - last) / r, 0)
        better = _exponential(schedule, x_last, last + rho_older * slope + rho * (x0 - last), t_last, t)
        return jnp.where(jnp.isnan(t_last), x, better)

    def step(denoise, schedule, x, t, t_next, carry, key):
        _, last, t_last, *_ = carry
        x0, _ = denoise(x, t)
        x = corrected(schedule, x, x0, t, carry)
        w = _extrapolation(schedule, t_last, t, t_next)
        x1 = _exponential(schedule, x, x0 + w * (x0 - last), t, t_next)
        return x1, (x, x0, jnp.asarray(t, jnp.float32), last, t_last)

    never = jnp.float32(jnp.nan)
    return Sampler(lambda x: (x, jnp.zeros_like(x), never, jnp.zeros_like(x), never), step)


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m, "unipc": unipc}
