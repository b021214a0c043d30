"""A Gaussian diffusion is two functions of time: xt = alpha(t) x0 + sigma(t) eps. Everything else follows from them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid
from jax.scipy.special import ndtri
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from vidjax.errors import InputError

PREDICTIONS = ("eps", "v", "x0", "flow", "score")
SPACINGS = ("leading", "trailing", "linspace", "karras", "logsnr")
_TINY = 1e-10  # floor of alpha and sigma inside logarithms: logsnr stays within +-46 at pure noise and at clean data


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Noise levels over time. Static (hashable), made once by a constructor below; all arithmetic is fp32.

    Time `t` is a float in the schedule's own units, growing with noise from `clean` (alpha 1, sigma 0) to `noisiest`.
    Any shape of `t` that is a leading part of the data's shape serves: a scalar, `[b]`, or `[b, t]`, a level a frame.
    Tables: t = 0 .. steps-1 are their entries, -1 is `clean`; between two entries sigma / alpha is linear in t, as in
    `diffusers`, where pure noise (alpha 0) counts as a sixteenth of the alpha before it.
    """

    path: Callable  # t -> (alpha, sigma)
    time: Callable  # logsnr -> t, numpy in float64
    quantile: Callable  # u in [0, 1) -> t, the inverse CDF of the training distribution
    noise_embedding: Callable  # t -> the time that the network is told
    noisiest: float
    clean: float
    span: tuple[float, float]  # logsnr at the two ends of the spacings that go by noise level
    spacing: str | None = "trailing"  # what `timesteps` uses unless told; None: what the sampler uses in `diffusers`
    offset: int = 0  # of "leading", likewise
    steps: int | None = None  # entries of the table; None: continuous
    end: float | None = None  # where DDIM and PNDM end, if not at `clean`
    sigma_end: float | None = None  # where Euler's method, DPM-Solver++ and UniPC end, likewise
    sigma_data: float = 1.0  # standard deviation of x0, for "v" and for the input scale
    unit_input: bool = False  # the network sees xt divided by its standard deviation
    noise_path: Callable | None = None  # t -> (alpha, sigma) by which a start and DDIM's noise go, if not by `path`

    def alpha(self, t: ArrayLike) -> Float[Array, "..."]:
        """Returns the share of the data in xt."""
        return self.path(jnp.asarray(t, jnp.float32))[0]

    def sigma(self, t: ArrayLike) -> Float[Array, "..."]:
        """Returns the share of the noise in xt."""
        return self.path(jnp.asarray(t, jnp.float32))[1]

    def std(self, t: ArrayLike) -> Float[Array, "..."]:
        """The standard deviation of xt, 1 where variance is preserved: what sampling from t starts with."""
        alpha, sigma = (self.noise_path or self.path)(jnp.asarray(t, jnp.float32))
        return jnp.hypot(alpha * self.sigma_data, sigma)

    def logsnr(self, t: ArrayLike) -> Float[Array, "..."]:
        """log(alpha^2 / sigma^2), finite everywhere: clipped where alpha or sigma is below 1e-10."""
        alpha, sigma = self.path(jnp.asarray(t, jnp.float32))
        return 2 * (jnp.log(jnp.maximum(alpha, _TINY)) - jnp.log(jnp.maximum(sigma, _TINY)))

    def levels(self, t: ArrayLike, x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """alpha and sigma at `t`, with trailing axes that let them multiply `x`."""
        t = jnp.asarray(t, jnp.float32)
        return self.path(t.reshape(t.shape + (1,) * (x.ndim - t.ndim)))

    def q_sample(self, x0: Float[Array, " *x"], eps: Float[Array, " *x"], t: ArrayLike) -> Float[Array, " *x"]:
        """A draw from q(xt | x0), Ho et al. 2020 eq. 4."""
        alpha, sigma = self.levels(t, x0)
        return alpha * x0 + sigma * eps

    def target(
        self, x0: Float[Array, " *x"], eps: Float[Array, " *x"], t: ArrayLike, prediction: str
    ) -> Float[Array, " *x"]:
        """What the network should say: "eps", "x0", "flow" = eps - x0 (Lipman et al. 2023), "v", or "score" = -eps /
        sigma, the gradient of log q(xt | x0) (Song et al. 2021), which has no bound near clean data: 0 stands there.

        v = alpha eps - sigma x0 (Salimans & Ho 2022) in the coordinates in which data and xt have variance 1: x0 over
        `sigma_data`, xt over its standard deviation. With alpha = 1 that is minus EDM's F (Karras et al. 2022, eq. 8).
        """
        if prediction == "v":
            a, s, _ = self._unit_circle(t, x0)
            return a * eps - s * x0 / self.sigma_data
        if prediction == "score":
            return _ratio(-eps, self.levels(t, x0)[1])
        return {"eps": lambda: eps, "x0": lambda: x0, "flow": lambda: eps - x0}[check_prediction(prediction)]()

    def x0_eps(
        self, pred: Float[Array, " *x"], xt: Float[Array, " *x"], t: ArrayLike, prediction: str
    ) -> tuple[Float[Array, " *x"], Float[Array, " *x"]]:
        """(x0, eps) from a prediction of any kind and xt; the inverse of `target`.

        Always finite. At pure noise an "eps" says nothing about x0, at clean data an "x0" nothing about eps: that one
        is then 0, the mean.
        """
        pred, xt = pred.astype(jnp.float32), xt.astype(jnp.float32)
        alpha, sigma = self.levels(t, xt)
        match check_prediction(prediction):
            case "eps":
                return _ratio(xt - sigma * pred, alpha), pred
            case "score":
                return _ratio(xt + sigma**2 * pred, alpha), -sigma * pred
            case "x0":
                return pred, _ratio(xt - alpha * pred, sigma)
            case "flow":
                return (xt - sigma * pred) / (alpha + sigma), (xt + alpha * pred) / (alpha + sigma)
            case _:
                a, s, std = self._unit_circle(t, xt)
                return self.sigma_data * (a * xt / std - s * pred), s * xt / std + a * pred

    def network_input(self, xt: Float[Array, " *x"], t: ArrayLike) -> tuple[Float[Array, " *x"], Float[Array, "..."]]:
        """What the network is given: xt (EDM: times c_in = 1 / std) and its time (EDM: c_noise = log(sigma) / 4)."""
        t = jnp.asarray(t, jnp.float32)
        return xt / self._unit_circle(t, xt)[2] if self.unit_input else xt, self.noise_embedding(t)

    def sample_t(self, u: Float[Array, " *u"]) -> Float[Array, " *u"]:
        """Training times from uniforms in [0, 1); stratified uniforms give stratified times."""
        return self.quantile(u).astype(jnp.float32)

    def timesteps(
        self,
        num_steps: int,
        spacing: str | None = None,
        offset: int | None = None,
        *,
        more: int = 0,
        whole: bool = True,
        end: float | None = None,
    ) -> Float[np.ndarray, " n"]:
        """`num_steps + 1` decreasing times, the last one `end`, by default `clean`. `samplers.times` gives a sampler's.

        leading, trailing, linspace: as DDIM's in `diffusers` for tables (`offset` is its `steps_offset`, for leading),
        even steps for continuous schedules. karras: Karras et al. 2022 eq. 5, rho = 7. logsnr: even in logsnr (Lu et
        al. 2022). The last two land between the entries of a table. more: leading and linspace are laid out for so many
        more steps, of which the last are left out. whole: linspace takes entries of the table only. Raises InputError.
        """
        spacing, n = spacing or self.spacing or "leading", num_steps
        offset = self.offset if offset is None else offset
        if spacing not in SPACINGS:
            raise InputError(f"timestep spacing {spacing!r} is unknown; choose one of {', '.join(SPACINGS)}")
        if not 1 <= n <= (self.steps or n):
            raise InputError(f"num_steps is {n}; it must lie in 1..{self.steps or 'any number'}")
        if spacing == "karras":
            high, low = np.exp(-0.5 * np.array(self.span)) ** (1 / 7)  # sigma / alpha, to the power 1 / rho
            times = self.time(-2 * np.log(np.linspace(high, low, n) ** 7))
        elif spacing == "logsnr":
            times = self.time(np.linspace(*self.span, n))
        elif self.steps is None:
            times = np.linspace(self.noisiest, self.clean, n + 1)[:-1]
        elif spacing == "leading":
            laid = min(n + more, self.steps)
            times = np.arange(laid)[::-1][:n] * (self.steps // laid) + offset
        elif spacing == "trailing":
            times = np.round(np.arange(self.steps, 0, -self.steps / n))[:n] - 1
        else:
            times = np.linspace(0, self.steps - 1, n + more)[::-1][:n]
            times = np.round(times) if whole else times
        return np.append(times, self.clean if end is None else end).astype(np.float32)

    def _unit_circle(self, t: ArrayLike, x: Float[Array, "..."]):
        """(alpha sigma_data, sigma) over the standard deviation of xt, and that deviation."""
        alpha, sigma = self.levels(t, x)
        std = jnp.hypot(alpha * self.sigma_data, sigma)
        return alpha * self.sigma_data / std, sigma / std, std


def check_prediction(prediction: str) -> str:
    """The name itself, or InputError."""
    if prediction not in PREDICTIONS:
        raise InputError(f"prediction {prediction!r} is unknown; choose one of {', '.join(PREDICTIONS)}")
    return prediction


def _ratio(a, b):
    """a / b, and 0 where b is 0."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def table(betas: Any, *, zero_snr: bool = False, set_alpha_to_one: bool = True) -> Schedule:
    """The discrete diffusion of Ho et al. 2020 with these betas; variance preserving.

    `zero_snr`: the last entry becomes pure noise (Lin et al. 2024, algorithm 1); the prediction should then be "v".
    `set_alpha_to_one=False`: DDIM and PNDM end at entry 0 instead of clean data, as with Stable Diffusion.
    """
    try:
        betas = np.asarray(betas, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"betas such as {str(betas)[:60]} are no numbers") from None
    if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas < 1)).all():
        raise InputError(f"betas such as {str(betas.tolist())[:60]} are no diffusion: each is above 0 and below 1")
    root = np.sqrt(np.cumprod(1 - betas))
    if zero_snr:
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    made = of_alphas(root)
    return made if set_alpha_to_one else dataclasses.replace(made, end=0.0)


def of_alphas(alphas: Float[np.ndarray, " steps"]) -> Schedule:
    """A table of these alphas, falling and below 1, the last of which may be 0; variance preserving."""
    steps, zero_snr = len(alphas), alphas[-1] == 0
    alphas = np.concatenate([[1.0], alphas])
    sigmas, floored = np.sqrt(1 - alphas**2), np.where(alphas > 0, alphas, alphas[-2] / 16)

    def path(t):
        low = jnp.clip(jnp.floor(t), -1, steps - 2)
        w, i = jnp.clip(t - low, 0, 1), low.astype(jnp.int32) + 1
        at = lambda y, i: jnp.asarray(y, jnp.float32)[i]
        own, other = (1 - w) * at(floored, i + 1), w * at(floored, i)  # on the chord from (alpha, sigma) to the next
        alpha, sigma = (own * at(y, i) + other * at(y, i + 1) for y in (alphas, sigmas))
        return alpha / jnp.hypot(alpha, sigma), sigma / jnp.hypot(alpha, sigma)

    def time(logsnr):
        return np.interp(np.exp(-0.5 * logsnr), sigmas / floored, np.arange(-1, steps))

    logsnr = 2 * np.log(alphas[1 : -1 if zero_snr else None] / sigmas[1 : -1 if zero_snr else None])
    return Schedule(
        path=path,
        time=time,
        quantile=lambda u: jnp.clip(jnp.floor(u * steps), 0, steps - 1),
        noise_embedding=lambda t: t,
        noisiest=steps - 1.0,
        clean=-1.0,
        span=(float(logsnr[-1]), float(logsnr[0])),
        steps=steps,
    )


def check_steps(steps: int) -> int:
    """Raises InputError for a number of entries that no table has."""
    if not 1 <= steps <= 10**6:
        raise InputError(f"a diffusion of steps={steps} is not possible: take 1 to 1000000, usually 1000")
    return steps


@functools.cache
def linear(steps: int = 1000, start: float = 1e-4, end: float = 0.02, **options) -> Schedule:
    """Betas linear in t (Ho et al. 2020). The options are those of `table`."""
    return table(np.linspace(start, end, check_steps(steps)), **options)


@functools.cache
def scaled_linear(steps: int = 1000, start: float = 0.00085, end: float = 0.012, **options) -> Schedule:
    """Roots of the betas linear in t (Rombach et al. 2022); the defaults are Stable Diffusion's."""
    return table(np.linspace(start**0.5, end**0.5, check_steps(steps)) ** 2, **options)


@functools.cache
def lvdm(steps: int = 1000, **options) -> Schedule:
    """He et al. 2022: scaled linear from 0.0015 to 0.0155."""
    return scaled_linear(steps, 0.0015, 0.0155, **options)


@functools.cache
def cosine(steps: int | None = 1000, shift: float = 1.0, max_beta: float = 0.999, **options) -> Schedule:
    """Nichol & Dhariwal 2021 eq. 17 as a table; with `steps=None` the continuous form alpha = cos(pi t / 2) on [0, 1].

    `shift` (continuous form only) multiplies sigma / alpha, so logsnr += 2 log(1 / shift): Hoogeboom et al. 2023, who
    take (size / 64) for images of that size. The network is told 1000 t.
    """
    if steps is not None:
        if shift != 1:
            raise InputError(f"the cosine table has no shift ({shift}); take the continuous form, steps=None")
        bar = np.cos((np.arange(check_steps(steps) + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return table(np.minimum(1 - bar[1:] / bar[:-1], max_beta), **options)

    def path(t):
        alpha, sigma = jnp.sin(jnp.pi / 2 * (1 - t)), shift * jnp.sin(jnp.pi / 2 * t)  # the sines are 0 at both ends
        return alpha / jnp.hypot(alpha, sigma), sigma / jnp.hypot(alpha, sigma)

    return Schedule(
        path=path,
        time=lambda logsnr: np.arctan(np.exp(-0.5 * logsnr) / shift) * 2 / np.pi,
        quantile=lambda u: u,
        noise_embedding=lambda t: 1000 * t,
        noisiest=1.0,
        clean=0.0,
        span=(-10.0, 10.0),
        **options,
    )


@functools.cache
def cosine_between(
    steps: int = 1000, low: float = 2.0, high: float = 4.0, limit: float = 15.0, used: int | None = None
) -> Schedule:
    """The table of I2VGen-XL's second stage: the cosine between logsnr `limit` and -`limit`, its sigma / alpha times a
    shift (Hoogeboom et al. 2023) whose logarithm goes evenly from that of `low` at the first entry to that of `high` at
    the last.

    used: so many entries, the first, are all there is; the network is told their numbers.
    """
    share = np.linspace(0, 1, check_steps(steps))
    ends = np.arctan(np.exp([-limit / 2, limit / 2]))
    ratio = np.tan(ends[0] + share * (ends[1] - ends[0])) * low ** (1 - share) * high**share
    return of_alphas(1 / np.hypot(1, ratio)[:used])


@functools.cache
def scale_data(base: Schedule, low: float, levels: int = 400) -> Schedule:
    """A table whose data loses contrast under noise (VideoCrafter's `use_scale`): x0 is multiplied by a factor that
    falls evenly from 1 to `low` over the first `levels` entries and stays there. Sampling starts with the noise, and
    DDIM adds as much on the way, as the table has it without. Raises InputError."""
    if not 0 < low <= 1 or base.steps is None or not 2 <= levels <= base.steps:
        raise InputError(f"x0 cannot be scaled to {low} over {levels} levels; take above 0 and up to 1, over 2 or more")
    ends = np.array([0.0, levels - 1.0]), np.array([1.0, low])

    def path(t):
        alpha, sigma = base.path(t)
        return alpha * jnp.interp(t, *ends), sigma

    alphas, sigmas = (np.asarray(each, np.float64) for each in path(jnp.arange(-1.0, base.steps)))
    ratios = sigmas / np.where(alphas > 0, alphas, alphas[-2] / 16)
    return dataclasses.replace(
        base,
        path=path,
        time=lambda logsnr: np.interp(np.exp(-0.5 * logsnr), ratios, np.arange(-1, base.steps)),
        span=(-2 * float(np.log(ratios[-1])), -2 * float(np.log(ratios[1]))),
        noise_path=base.path,
    )


@functools.cache
def edm(
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float = 1.0,
    mean: float = -1.2,
    std: float = 1.2,
) -> Schedule:
    """Karras et al. 2022: alpha = 1, sigma = t. With prediction "v" this is their preconditioning, table 1.

    Latents scaled to unit variance have sigma_data = 1 (the paper's images: 0.5). Training draws log sigma from
    N(mean, std^2). Levels under sigma_min are told to the network as sigma_min.
    """
    return Schedule(
        path=lambda t: (jnp.ones_like(t), t),
        time=lambda logsnr: np.exp(-0.5 * logsnr),
        quantile=lambda u: jnp.exp(mean + std * ndtri(jnp.clip(u, 1e-6, 1 - 1e-6))),
        noise_embedding=lambda t: jnp.log(jnp.maximum(t, sigma_min)) / 4,
        noisiest=sigma_max,
        clean=0.0,
        span=(-2 * float(np.log(sigma_max)), -2 * float(np.log(sigma_min))),
        spacing="karras",
        sigma_data=sigma_data,
        unit_input=True,
    )


@functools.cache
def flow(shift: float = 1.0, mean: float = 0.0, std: float | None = None) -> Schedule:
    """Rectified flow (Liu et al. 2023; Lipman et al. 2023): alpha = 1 - t, sigma = t on [0, 1].

    `shift` multiplies sigma / alpha at every t (Esser et al. 2024 eq. 23); the network is told 1000 sigma. Training
    times are uniform, or with `std` logit-normal, sigmoid of N(mean, std^2) (their section 3.1).
    """

    def path(t):
        return (1 - t) / (1 + (shift - 1) * t), shift * t / (1 + (shift - 1) * t)

    def quantile(u):
        return u if std is None else sigmoid(mean + std * ndtri(jnp.clip(u, 1e-6, 1 - 1e-6)))

    return Schedule(
        path=path,
        time=lambda logsnr: 1 / (1 + shift * np.exp(0.5 * logsnr)),
        quantile=quantile,
        noise_embedding=lambda t: 1000 * path(t)[1],
        noisiest=1.0,
        clean=0.0,
        span=(-10.0, 10.0),
    )


def of_levels(
    alpha: Callable,
    sigma: Callable,
    noisiest: float,
    clean: float = 0.0,
    *,
    noise_embedding: Callable = lambda t: t,
    nearest: float = 1e-3,
    **options: Any,
) -> Schedule:
    """Any diffusion of continuous time: jnp functions t -> alpha(t) and t -> sigma(t) from `clean` to `noisiest`, over
    which sigma / alpha grows.

    noise_embedding: t -> the time that the network is given. nearest: the first share of the time, which karras and
    logsnr spacing leave out, as their last level but clean. The options are fields of Schedule. Training times are
    uniform.
    """
    path = lambda t: (jnp.broadcast_to(alpha(t), jnp.shape(t)), jnp.broadcast_to(sigma(t), jnp.shape(t)))
    grid = clean + (noisiest - clean) * np.linspace(0, 1, 10001) ** 2
    levels = [np.maximum(np.asarray(each, np.float64), _TINY) for each in path(jnp.asarray(grid, jnp.float32))]
    logsnr = 2 * (np.log(levels[0]) - np.log(levels[1]))
    if not (np.diff(logsnr) <= 0).all() or not logsnr[0] > logsnr[-1]:
        raise InputError(
            f"sigma / alpha does not grow from t={clean} to t={noisiest}: it is no diffusion in that order"
        )
    first = clean + nearest * (noisiest - clean)
    return Schedule(
        path=path,
        time=lambda wanted: np.interp(-wanted, -logsnr, grid),
        quantile=lambda u: clean + (noisiest - clean) * u,
        noise_embedding=noise_embedding,
        noisiest=noisiest,
        clean=clean,
        span=(float(logsnr[-1]), float(np.interp(first, grid, logsnr))),
        **options,
    )


SCHEDULES = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "lvdm": lvdm,
    "cosine": cosine,
    "edm": edm,
    "flow": flow,
}
