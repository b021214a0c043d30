"""Motion in latents: translations that are known, noise in closed form, and the whole algorithm on Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.diffusion import schedule as schedules
from vidjax.diffusion.latent_motion import latents_in_motion, noise_between, translate, zero_shot
from vidjax.diffusion.samplers import ddim, sample
from vidjax.errors import InputError

KEY = jax.random.key(0)
SCHEDULE = schedules.scaled_linear()
SCHEDULES = {"table": SCHEDULE, "cosine": schedules.cosine(None), "edm": schedules.edm(), "flow": schedules.flow()}
X = jax.random.normal(KEY, (2, 4, 8, 6, 3))


def gaussian(schedule, std=0.5, mean=0.0):
    """The exact denoiser of data from N(mean, std^2), pixel by pixel."""

    def denoise(xt, t):
        alpha, sigma = schedule.levels(t, xt)
        x0 = mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (xt - alpha * mean)
        return schedule.x0_eps(x0, xt, t, "x0")

    return denoise


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_no_motion_changes_nothing(interpolation):
    np.testing.assert_array_equal(translate(X, jnp.zeros((4, 2)), interpolation), X)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_whole_shifts_are_a_roll_inside_the_frame_and_a_mirror_at_its_edge(interpolation):
    shifts = jnp.array([[0, 0], [2, 1], [-3, 2], [0, -4]])
    got = np.asarray(translate(X, shifts.astype(jnp.float32), interpolation))
    for k, (down, right) in enumerate(shifts.tolist()):
        rolled = np.roll(X[:, k], (down, right), (1, 2))
        inside = (slice(max(down, 0), 8 + min(down, 0)), slice(max(right, 0), 6 + min(right, 0)))
        np.testing.assert_allclose(got[(slice(None), k, *inside)], rolled[(slice(None), *inside)], atol=1e-6)
        mirrored = np.pad(X[:, k], ((0, 0), (8, 8), (6, 6), (0, 0)), mode="symmetric")
        expected = mirrored[:, 8 - down : 16 - down, 6 - right : 12 - right]
        np.testing.assert_allclose(got[:, k], expected, atol=1e-6)


def test_shifts_beyond_the_frame_go_on_mirroring():
    """Two heights further the picture is the same again."""
    far = translate(X, jnp.full((4, 2), 1.0) + jnp.array([16.0, -24.0]))
    np.testing.assert_array_equal(far, translate(X, jnp.full((4, 2), 1.0)))


def test_bilinear_moves_a_ramp_by_fractions():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None, None] + 10 * jnp.arange(6.0)[None, :, None], (1, 1, 8, 6, 1))
    got = translate(ramp, jnp.array([[0.25, -0.5]]), "bilinear")
    np.testing.assert_allclose(got[0, 0, 1:, :-1], (ramp - 0.25 + 5)[0, 0, 1:, :-1], atol=1e-5)


def test_of_half_a_latent_nearest_keeps_the_variance_of_noise_and_bilinear_a_quarter():
    noise = jax.random.normal(KEY, (1, 1, 200, 200, 4))
    half = jnp.array([[0.5, 1.5]])
    assert translate(noise, half)[..., 2:-2, 2:-2, :].var() == pytest.approx(1, rel=0.02)
    assert translate(noise, half, "bilinear")[..., 2:-2, 2:-2, :].var() == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize("name", SCHEDULES)
def test_noised_again_the_latents_have_the_mean_and_variance_of_the_schedule(name):
    """x at t is alpha x0 + sigma eps; noised to t' it must be a draw of alpha' x0 + sigma' eps'."""
    schedule = SCHEDULES[name]
    t, t1 = schedule.timesteps(10)[[4, 1]]
    (a, s), (a1, s1) = (map(float, schedule.path(jnp.float32(u))) for u in (t, t1))
    keys = jax.random.split(KEY)
    x0 = 3.0
    x = a * x0 + s * jax.random.normal(keys[0], (4, 2, 100, 100, 2))
    y = noise_between(schedule, x, t, t1, keys[1])
    assert y.mean() == pytest.approx(a1 * x0, abs=0.02 * max(s1, 1))
    assert y.std() == pytest.approx(s1, rel=0.01)
    # Given x it has the mean (a' / a) x and the rest of the variance.
    residual = y - a1 / a * x
    assert residual.var() == pytest.approx(s1**2 - (a1 / a * s) ** 2, rel=0.02)
    assert abs(np.corrcoef(np.ravel(x), np.ravel(residual))[0, 1]) < 0.01


def test_frames_are_the_first_one_moved_and_noised_alone():
    times, first = SCHEDULE.timesteps(50)[3:7], X[:, :1]
    make = lambda velocity: latents_in_motion(gaussian(SCHEDULE), SCHEDULE, first, times, 3, velocity, KEY)
    still, moving = make((0.0, 0.0)), make((1.0, -2.0))
    np.testing.assert_array_equal(still[:, :1], first)
    np.testing.assert_array_equal(moving[:, :1], first)
    # Noise is added after the motion, the same with the same key, so differences of the two are those of the motion.
    at_t0 = sample(gaussian(SCHEDULE), SCHEDULE, first, times, 3, ddim(), KEY)
    scale = SCHEDULE.alpha(times[0]) / SCHEDULE.alpha(times[-1])
    for k in (1, 2):
        moved = translate(at_t0, jnp.array([[1.0, -2.0]]) * k)[:, 0]
        np.testing.assert_allclose(moving[:, k] - still[:, k], scale * (moved - at_t0[:, 0]), atol=1e-5)
    noises = [still[:, k] - scale * at_t0[:, 0] for k in (1, 2)]
    assert abs(np.corrcoef(*map(np.ravel, noises))[0, 1]) < 0.2  # every frame has its own


def test_the_whole_algorithm_ends_in_the_data_and_moves():
    """With the exact denoiser of N(2, 0.5^2) each frame has these moments; what it shares with the first has moved."""
    alpha, sigma = SCHEDULE.path(jnp.float32(999))
    x = 2 * alpha + jnp.hypot(0.5 * alpha, sigma) * jax.random.normal(KEY, (4, 1, 48, 48, 2))
    run = jax.jit(
        lambda x: zero_shot(gaussian(SCHEDULE, 0.5, 2.0), SCHEDULE, x, SCHEDULE.timesteps(50), 4, (0.0, 3.0), KEY)
    )
    video = np.asarray(run(x))
    assert video.shape == (4, 4, 48, 48, 2)
    np.testing.assert_allclose(video.mean((0, 2, 3, 4)), 2, atol=0.03)
    alone = sample(gaussian(SCHEDULE, 0.5, 2.0), SCHEDULE, x, SCHEDULE.timesteps(50), 50, ddim(), KEY)
    np.testing.assert_allclose(video[:, :1], alone, atol=1e-4)  # the first frame is the image itself
    assert alone.std() == pytest.approx(0.5, rel=0.1)  # what 50 steps of DDIM make of it, and all frames are alike
    np.testing.assert_allclose(video.std((0, 2, 3, 4)), alone.std(), rtol=0.02)
    likeness = lambda shift: np.corrcoef(video[:, 0, :, : 48 - shift].ravel(), video[:, 1, :, shift:].ravel())[0, 1]
    assert likeness(3) > 0.3 > 0.1 > abs(likeness(0))


def test_steps_too_few_for_the_two_levels_are_refused():
    with pytest.raises(InputError, match="none between"):
        zero_shot(gaussian(SCHEDULE), SCHEDULE, X[:, :1], SCHEDULE.timesteps(3), 2, (0.0, 1.0), KEY)


def test_the_levels_are_the_papers():
    """Khachatryan et al. 2023, section 4.1: T' = 941 and T0 = 881 of 1000, DDIM in 50 steps from 981."""
    asked = []

    def denoise(xt, t):
        jax.debug.callback(lambda t, frames=xt.shape[1]: asked.append((frames, int(t))), t[0, 0], ordered=True)
        return xt, xt

    zero_shot(denoise, SCHEDULE, X[:, :1], SCHEDULE.timesteps(50, "leading", 1), 2, (0.0, 0.0), KEY)
    jax.effects_barrier()
    down = list(range(981, 0, -20))
    assert asked == [(1, t) for t in down[:5]] + [(2, t) for t in down[2:]]
    assert down[2] == 941 and down[5] == 881
