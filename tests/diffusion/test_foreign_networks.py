"""The manual's example of someone else's network runs as it stands and samples what it says."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.diffusion import schedule as schedules
from vidjax.diffusion.samplers import SAMPLERS, sample, times
from vidjax.errors import InputError

MANUAL = Path(__file__).parents[2] / "docs" / "foreign_networks.md"


@pytest.fixture(scope="module")
def example():
    (code,) = re.findall(r"```python\n(.*?)```", MANUAL.read_text(), re.DOTALL)
    names: dict = {}
    exec(code, names)
    return names


def test_the_example_samples_its_data(example):
    samples = example["samples"]
    assert samples.shape == (1000, 8)
    np.testing.assert_allclose([samples.mean(), samples.std()], [2, 0.5], rtol=0.02)


def test_a_score_is_the_gradient_of_the_log_density(example):
    """Tweedie: of the exact score, x0 is the mean of the data that may have become xt."""
    process, t = example["process"], jnp.array([0.1, 0.4, 0.9])
    xt, (a, s) = jnp.linspace(-1, 3, 3), (example[name](t) for name in ("alpha", "sigma"))
    log_density = lambda x, a, s: -0.5 * (x - 2 * a) ** 2 / (0.25 * a**2 + s**2)
    found, _ = process.x0_eps(jax.vmap(jax.grad(log_density))(xt, a, s), xt, t, "score")
    np.testing.assert_allclose(found, 2 + 0.25 * a / (0.25 * a**2 + s**2) * (xt - 2 * a), rtol=1e-4)


@pytest.mark.parametrize("name", ["ddim", "heun", "pndm"])
def test_frames_and_none_are_the_same(example, name):
    process, sampler, x = example["process"], SAMPLERS[name](), jax.random.normal(jax.random.key(2), (2, 3, 4))
    steps = times(sampler, process, 5, "logsnr")

    def denoise(xt, t):
        return process.x0_eps(example["score"](xt, t.reshape(t.shape + (1,) * (xt.ndim - t.ndim))), xt, t, "score")

    ask = lambda frames: sample(denoise, process, x, steps, 5, sampler, jax.random.key(3), frames=frames)
    np.testing.assert_allclose(ask(True), ask(False), rtol=1e-6)


def test_what_is_no_diffusion_is_refused():
    with pytest.raises(InputError, match=r"sigma / alpha does not grow from t=0.0 to t=1.0"):
        schedules.of_levels(lambda t: t, lambda t: 1 - t, 1.0)
