"""How much each noise level counts: `weight(logsnr, prediction)` multiplies the squared error of that prediction.

All weightings are stated on the squared error of x0 and carried over: one error of x0 shows in eps, v and flow with
known factors. So a weighting means the same whatever the network predicts, and "uniform" alone depends on it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vidjax.diffusion.schedule import check_prediction
from vidjax.errors import InputError


def x0_error(logsnr: Float[Array, " *t"], prediction: str, sigma_data: float = 1.0) -> Float[Array, " *t"]:
    """Squared error of x0 over that of the prediction, "v" being the one of `Schedule.target`. Raises InputError for
    "score", where it is no function of logsnr alone."""
    if prediction == "score":
        raise InputError("prediction 'score' has no weighting but 'uniform'; train 'eps', which is -sigma times it")
    snr = jnp.exp(logsnr)
    return {
        "x0": jnp.ones_like(snr),
        "eps": 1 / snr,
        "v": sigma_data**2 / (1 + snr * sigma_data**2),
        "flow": 1 / (1 + jnp.sqrt(snr)) ** 2,
    }[check_prediction(prediction)]


def uniform(logsnr: Float[Array, " *t"], prediction: str) -> Float[Array, " *t"]:
    """The plain squared error of the prediction; for "eps" Ho et al. 2020 eq. 14."""
    return jnp.ones_like(logsnr)


def min_snr(logsnr: Float[Array, " *t"], prediction: str, gamma: float = 5.0) -> Float[Array, " *t"]:
    """min(SNR, gamma) on x0, Hang et al. 2023 eq. 7; so 1 on "eps" where SNR < gamma."""
    return jnp.minimum(jnp.exp(logsnr), gamma) * x0_error(logsnr, prediction)


def p2(logsnr: Float[Array, " *t"], prediction: str, k: float = 1.0, gamma: float = 1.0) -> Float[Array, " *t"]:
    """1 / (k + SNR)^gamma on eps, Choi et al. 2022 eq. 8."""
    snr = jnp.exp(logsnr)
    return snr * x0_error(logsnr, prediction) / (k + snr) ** gamma


def edm(logsnr: Float[Array, " *t"], prediction: str, sigma_data: float = 1.0) -> Float[Array, " *t"]:
    """1 / sigma^2 + 1 / sigma_data^2 on x0, Karras et al. 2022 table 1; so exactly 1 on "v" (minus their F)."""
    return (jnp.exp(logsnr) + 1 / sigma_data**2) * x0_error(logsnr, prediction, sigma_data)


WEIGHTINGS = {"uniform": uniform, "min_snr": min_snr, "p2": p2, "edm": edm}
