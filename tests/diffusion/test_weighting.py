"""A weighting means the same for every prediction: the weighted squared errors of one wrong guess agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.diffusion import schedule as schedules
from vidjax.diffusion.schedule import PREDICTIONS
from vidjax.diffusion.weighting import WEIGHTINGS
from vidjax.errors import InputError

WEIGHED = [p for p in PREDICTIONS if p != "score"]


def weighted(schedule, weight, prediction, t, guess):
    """The weighted squared error when (x0, eps) are wrongly taken to be `guess`, consistent with the same xt."""
    keys = jax.random.split(jax.random.key(0))
    x0, eps = (jax.random.normal(key, (t.size,)) for key in keys)
    xt = schedule.q_sample(x0, eps, t)
    wrong = schedule.x0_eps(guess, xt, t, "x0")
    error = schedule.target(*wrong, t, prediction) - schedule.target(x0, eps, t, prediction)
    return weight(schedule.logsnr(t), prediction) * error**2


@pytest.mark.parametrize("name", ["min_snr", "p2", "edm"])
@pytest.mark.parametrize("make", [schedules.lvdm, schedules.edm, schedules.flow])
def test_same_loss_for_every_prediction(name, make):
    schedule = make()
    t = schedule.sample_t(jnp.array([0.1, 0.4, 0.6, 0.9]))
    guess = jnp.array([0.3, -0.5, 1.0, 0.2])
    losses = [weighted(schedule, WEIGHTINGS[name], p, t, guess) for p in WEIGHED]
    for loss in losses[1:]:
        np.testing.assert_allclose(loss, losses[0], rtol=2e-3)


def test_published_forms():
    logsnr = jnp.linspace(-6, 6, 13)
    snr = jnp.exp(logsnr)
    expected = {
        ("uniform", "eps"): jnp.ones_like(snr),
        ("min_snr", "eps"): jnp.minimum(snr, 5) / snr,  # Hang et al. 2023, section 3.4
        ("min_snr", "v"): jnp.minimum(snr, 5) / (snr + 1),
        ("p2", "eps"): 1 / (1 + snr),  # Choi et al. 2022, eq. 8
        ("edm", "x0"): snr + 1,  # Karras et al. 2022, table 1, sigma_data = 1
        ("edm", "v"): jnp.ones_like(snr),
    }
    for (name, prediction), weight in expected.items():
        np.testing.assert_allclose(WEIGHTINGS[name](logsnr, prediction), weight, rtol=1e-5)
    np.testing.assert_allclose(WEIGHTINGS["edm"](logsnr, "v", sigma_data=0.5), 1, rtol=1e-5)


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("prediction", WEIGHED)
def test_finite_at_both_ends(name, prediction):
    schedule = schedules.linear(zero_snr=True)
    ends = schedule.logsnr(jnp.array([schedule.clean, schedule.noisiest]))
    assert bool(jnp.isfinite(WEIGHTINGS[name](ends, prediction)).all())


@pytest.mark.parametrize("name", [name for name in WEIGHTINGS if name != "uniform"])
def test_a_score_is_not_weighted(name):
    with pytest.raises(InputError, match="prediction 'score' has no weighting but 'uniform'"):
        WEIGHTINGS[name](jnp.zeros(3), "score")
