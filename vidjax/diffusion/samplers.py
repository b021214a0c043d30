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
MULTISTEP: dict[str, Any] = dict(end="sigma_end", spacing="linspace", more=1)
Denoiser = Callable[[Array, Array], tuple[Array, Array]]


class Sampler(NamedTuple):
    """`init(x) -> carry`; `step(denoise, schedule, x, t, t_next, carry, key) -> (x, carry)`, t and t_next scalars.

    The other fields are how the scheduler of that name in `diffusers` places its times, see `times`.
    """

    init: Callable[[Array], Any]
    step: Callable[..., tuple[Array, Any]]
    end: str = ""  # the field of Schedule that says where it ends; "": always clean
    spacing: str = "leading"  # if the schedule has none
    more: int = 0
    whole: bool = True


def times(
    sampler: Sampler, schedule: Schedule, num_steps: int, spacing: str | None = None, offset: int | None = None
) -> Float[np.ndarray, " n"]:
    """`Schedule.timesteps` as this sampler takes them in `diffusers`: its default spacing, its layout, its end."""
    end = getattr(schedule, sampler.end) if sampler.end else None
    spacing = spacing or schedule.spacing or sampler.spacing
    return schedule.timesteps(num_steps, spacing, offset, more=sampler.more, whole=sampler.whole, end=end)


def sample(
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, " b *rest"],
    times: Float[Array | np.ndarray, " capacity"],
    num_steps: int | np.integer | Int[Array, ""],
    sampler: Sampler,
    key: Array,
    progress: Callable | None = None,
    frames: bool = True,
    look: Callable | None = None,
) -> Float[Array, " b *rest"]:
    """Carry x from times[0] to times[num_steps]; entries of `times` after that are padding.

    Starts from x of standard deviation std(times[0]), pure noise. `denoise` gets the time as `[b, t]`, without
    `frames`, for data of any other kind, as `[b]`. Under jit with a traced `num_steps` one compilation serves any
    number of steps. `progress(steps_done)` and `look(steps_done, x0)`, with what the step predicted first, are called
    on the host; an error that they raise ends the sampler there (as JaxRuntimeError).
    """
    times = jnp.asarray(times)

    def body(i, state):
        x, carry = state
        predicted = []

        def denoise_at(x, t):
            predicted.append(denoise(x, jnp.broadcast_to(t, x.shape[: 1 + frames])))
            return predicted[-1]

        x, carry = sampler.step(denoise_at, schedule, x, times[i], times[i + 1], carry, jax.random.fold_in(key, i))
        if progress is not None:
            jax.debug.callback(progress, i + 1)
        if look is not None:
            jax.debug.callback(look, i + 1, predicted[0][0])
        return x, carry

    x = x.astype(jnp.float32)
    return jax.lax.fori_loop(0, num_steps, body, (x, sampler.init(x)))[0]


def forward_variance(path, t, t_next):
    """Variance of q(xt | x'), beta_t for neighbours: sigma_{t|s}^2 of Kingma et al. 2021, section A.1."""
    (a, s), (a1, s1) = path(t), path(t_next)
    return jnp.maximum(s**2 - (a / a1) ** 2 * s1**2, 0)


def ddpm(variance: str = "small") -> Sampler:
    """Ancestral sampling, Ho et al. 2020 algorithm 2, eq. 7. `variance`: "small" is the posterior's, "large" beta_t."""
    if variance not in ("small", "large"):
        raise InputError(f"DDPM's variance is {variance!r}; choose small or large")

    def step(denoise, schedule, x, t, t_next, carry, key):
        (a, s), (a1, s1) = schedule.path(t), schedule.path(t_next)
        x0, _ = denoise(x, t)
        beta = forward_variance(schedule.path, t, t_next)
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
        variance = eta**2 * forward_variance(schedule.noise_path or schedule.path, t, t_next) * (s1 / s) ** 2
        noise = jax.random.normal(key, x.shape)
        return a1 * x0 + jnp.sqrt(jnp.maximum(s1**2 - variance, 0)) * eps + jnp.sqrt(variance) * noise, carry

    return Sampler(lambda x: (), step, end="end")


def ddim_inverse() -> Sampler:
    """DDIM from clean data up to noise, eps asked at the level aimed at: Tune-A-Video's and `diffusers`' inversion.

    Run it over the reversed `timesteps`. Unlike `ddim` it never asks the network at `clean`, a level it was not
    trained on. Both return under `ddim` to where they came from, with an error that falls with the number of steps.
    """

    def step(denoise, schedule, x, t, t_next, carry, key):
        (a, s), (a1, s1) = schedule.path(t), schedule.path(t_next)
        _, eps = denoise(x, t_next)
        return a1 * (x - s * eps) / a + s1 * eps, carry

    return Sampler(lambda x: (), step, end="end")


def euler() -> Sampler:
    """Euler's method for the probability-flow ODE. The step is DDIM's, whether one integrates x / alpha over
    sigma / alpha (Song et al. 2021 eq. 14, Karras et al. 2022) or rectified flow's eps - x0 over t.

    Pipelines of `diffusers` start it, and Heun's, from sigma noise instead of noise under linspace and trailing
    spacing: 0.2% less with Stable Diffusion.
    """
    return Sampler(lambda x: (), ddim().step, end="sigma_end", spacing="linspace", whole=False)


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

    return Sampler(lambda x: (), step, spacing="linspace", whole=False)


def pndm() -> Sampler:
    """Pseudo linear multistep, Liu et al. 2022 (PNDM) eq. 12: DDIM's step along the Adams-Bashforth mean of the last
    four eps. It starts as in Stable Diffusion, with the trapezoid in place of Runge-Kutta: n + 1 evaluations.

    The coefficients are those of even steps; the mean is of eps whatever the network says. The carry is the last three
    eps and how many there are.
    """
    weights = np.array([[24, 0, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]], np.float32) / 24

    def step(denoise, schedule, x, t, t_next, carry, key):
        past, n = carry
        (a, s), (a1, s1) = schedule.path(t), schedule.path(t_next)
        x0, eps = denoise(x, t)
        x1, along = a1 * x0 + s1 * eps, (s1 - a1 * s / jnp.maximum(a, PURE)) * (a > PURE)
        end = schedule.clean if schedule.end is None else schedule.end
        first = lambda: jax.lax.cond(t_next != end, lambda: (denoise(x1, t_next)[1] - eps) / 2, lambda: 0 * eps)
        every = jnp.stack([eps, *past])
        later = lambda: jnp.tensordot(jnp.asarray(weights)[n], every, 1) - eps
        return x1 + along * jax.lax.cond(n == 0, first, later), (every[:3], jnp.minimum(n + 1, 3))

    return Sampler(lambda x: (jnp.zeros((3, *x.shape), x.dtype), jnp.int32(0)), step, end="end")


def _exponential(schedule, x, x0, t, t_next):
    """The exact solution of the ODE while x0 is constant: DDIM from x0 alone. Lu et al. 2022 (++) eq. 9, k = 1."""
    (a, s), (a1, s1) = schedule.path(t), schedule.path(t_next)
    return (s1 / s) * x + (a1 - a * s1 / s) * x0


def _extrapolation(schedule, t_last, t, t_next, end):
    """h / (2 h_last): x0 is continued to the middle of the step. 0 in the first step (t_last is nan), and to `end`."""
    h, h_last = schedule.logsnr(t_next) - schedule.logsnr(t), schedule.logsnr(t) - schedule.logsnr(t_last)
    return jnp.where(jnp.isnan(t_last) | (t_next == end), 0, h / (2 * h_last))


def dpmpp_2m() -> Sampler:
    """DPM-Solver++ (2M), Lu et al. 2022 (++) algorithm 2; the carry is the last step's x0 and time.

    The step to clean data is of first order; one that ends short of it (`Schedule.sigma_end`) of second, as in
    `diffusers` from 15 steps on. Between entries of a table the network is told the fraction, there the nearest entry.
    """

    def step(denoise, schedule, x, t, t_next, carry, key):
        last, t_last = carry
        x0, _ = denoise(x, t)
        w = _extrapolation(schedule, t_last, t, t_next, schedule.clean)
        return _exponential(schedule, x, x0 + w * (x0 - last), t, t_next), (x0, jnp.asarray(t, jnp.float32))

    return Sampler(lambda x: (jnp.zeros_like(x), jnp.float32(jnp.nan)), step, **MULTISTEP)


def dpmpp_2m_sde(eta: float = 1.0) -> Sampler:
    """SDE-DPM-Solver++ (2M), Lu et al. 2022 (++): `dpmpp_2m` with new noise at every step.

    Over a step of h in half the logsnr the noise that x has shrinks by a further e^(-eta h) and is filled up to its
    level. The paper's is eta = 1; 0 makes it `dpmpp_2m`. The step to clean data adds none.
    """

    def step(denoise, schedule, x, t, t_next, carry, key):
        last, t_last = carry
        (a, s), (a1, s1) = schedule.path(t), schedule.path(t_next)
        h = (schedule.logsnr(t_next) - schedule.logsnr(t)) / 2
        x0, _ = denoise(x, t)
        w = _extrapolation(schedule, t_last, t, t_next, schedule.clean)
        kept, fresh = s1 / s * jnp.exp(-eta * h), s1 * jnp.sqrt(-jnp.expm1(-2 * eta * h))
        x1 = kept * x + (a1 - a * kept) * (x0 + w * (x0 - last)) + fresh * jax.random.normal(key, x.shape)
        return x1, (x0, jnp.asarray(t, jnp.float32))

    return Sampler(lambda x: (jnp.zeros_like(x), jnp.float32(jnp.nan)), step, **MULTISTEP)


def unipc() -> Sampler:
    """UniPC-2 with B(h) = e^h - 1, Zhao et al. 2023 on x0: DPM-Solver++ (2M) whose every step is corrected as soon as
    x0 at its end is known, at no further evaluation.

    Its last step is of first order. The carry is (x, x0, t) of the last step's start and (x0, t) of the one before.
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
        end = schedule.clean if schedule.sigma_end is None else schedule.sigma_end
        w = _extrapolation(schedule, t_last, t, t_next, end)
        x1 = _exponential(schedule, x, x0 + w * (x0 - last), t, t_next)
        return x1, (x, x0, jnp.asarray(t, jnp.float32), last, t_last)

    never = jnp.float32(jnp.nan)
    return Sampler(lambda x: (x, jnp.zeros_like(x), never, jnp.zeros_like(x), never), step, **MULTISTEP)


# The samplers that a config or a call may name: functions of their options that return a Sampler, see
# docs/extending.md.
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "pndm": pndm,
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
}
RANDOM = ("ddpm", "dpmpp_2m_sde")  # those whose steps draw noise, whatever their options
