"""Null-text inversion on a denoiser whose answer to null tokens is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np

from vidjax.diffusion.null_text import at_time, null_text, pivots
from vidjax.diffusion.samplers import ddim, sample
from vidjax.diffusion.schedule import lvdm

KEY = jax.random.key(0)
SCHEDULE = lvdm()
TIMES = jnp.asarray(SCHEDULE.timesteps(20), jnp.float32)
RANDOM = np.random.default_rng(0)
X0 = jnp.asarray(RANDOM.standard_normal((1, 2, 2, 2, 3)), jnp.float32)
TEXT = jnp.asarray(RANDOM.standard_normal((1, 1, 3)), jnp.float32)


def under(tokens):
    """Data with mean `tokens`, a feature a channel, and deviation 0.5."""

    def denoise(xt, t):
        a, s = SCHEDULE.levels(t, xt)
        mean = tokens[:, 0, None, None, None]
        x0 = mean + a * 0.25 / (a**2 * 0.25 + s**2) * (xt - a * mean)
        return SCHEDULE.x0_eps(x0, xt, t, "x0")

    return denoise


def guided(table, scale):
    def denoise(xt, t):
        null = under(at_time(table, TIMES, t))(xt, t)
        return tuple(u + scale * (c - u) for c, u in zip(under(TEXT)(xt, t), null))

    return denoise


def test_pivots_run_from_noise_to_the_clip():
    path = pivots(under(TEXT), SCHEDULE, X0, TIMES)
    np.testing.assert_array_equal(path[-1], X0)
    back = sample(under(TEXT), SCHEDULE, path[0], TIMES, 20, ddim(), KEY)
    assert jnp.abs(back - X0).max() < jnp.abs(path[0] - X0).max() / 4


def test_null_tokens_undo_guidance():
    """The best null tokens are the caption's own, where guidance does nothing; the search ends where sampling does."""
    path = pivots(under(TEXT), SCHEDULE, X0, TIMES)
    start = jnp.zeros_like(TEXT)
    found, end = null_text(under(TEXT), under, SCHEDULE, path, TIMES, start, 7.5, steps=50)
    plain = jnp.broadcast_to(start, (20, *start.shape))
    run = lambda table: sample(guided(table, 7.5), SCHEDULE, path[0], TIMES, 20, ddim(), KEY)
    np.testing.assert_allclose(run(found), end, atol=1e-4)
    assert jnp.abs(end - X0).max() < jnp.abs(run(plain) - X0).max() / 4


def test_without_guidance_there_is_nothing_to_undo():
    path = pivots(under(TEXT), SCHEDULE, X0, TIMES)
    found, end = null_text(under(TEXT), under, SCHEDULE, path, TIMES, TEXT, 1.0)
    np.testing.assert_allclose(found, jnp.broadcast_to(TEXT, found.shape), atol=1e-6)
    np.testing.assert_allclose(end, sample(under(TEXT), SCHEDULE, path[0], TIMES, 20, ddim(), KEY), atol=1e-5)
