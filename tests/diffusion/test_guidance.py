"""Wrappers by closed form: what they must leave alone, what they must reach, and that they compose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.diffusion import schedule as schedules
from vidjax.diffusion.guidance import (
    at_once,
    classifier_free,
    from_known,
    in_chunks,
    in_turn,
    keep,
    known_frames,
    reconstruction,
    regions,
    threshold,
)
from vidjax.diffusion.samplers import SAMPLERS, sample
from vidjax.errors import InputError

VP = schedules.lvdm()
KEY = jax.random.key(0)
X = jax.random.normal(KEY, (2, 3, 4, 4, 1))
T = jnp.full((2, 3), 500.0)
MASK = jnp.array([[1, 0, 0], [1, 0, 1]], jnp.float32)


def constant(value, schedule=VP):
    return lambda xt, t: schedule.x0_eps(value + 0.1 * jnp.sin(7 * xt), xt, t, "x0")


def consistent(x0, eps, xt, t):
    np.testing.assert_allclose(VP.q_sample(x0, eps, t), xt, atol=1e-5)


def test_scale_one_is_the_conditional_and_skips_the_other():
    never = lambda xt, t: (jnp.full_like(xt, jnp.nan),) * 2
    guided = classifier_free(VP, constant(0.5), never, 1.0)(X, T)
    np.testing.assert_array_equal(guided, constant(0.5)(X, T))


def test_scale_extrapolates():
    guided = classifier_free(VP, constant(0.5), constant(0.1), 3.0)(X, T)
    np.testing.assert_allclose(guided[0], 0.1 + 3 * (0.5 - 0.1) + 0.1 * jnp.sin(7 * X), atol=1e-5)
    consistent(*guided, X, T)


def test_scale_a_frame():
    scales = jnp.array([1.0, 2.0, 3.0])
    guided = classifier_free(VP, constant(0.5), constant(0.1), scales)(X, T)
    for i, scale in enumerate(scales):
        alone = classifier_free(VP, constant(0.5), constant(0.1), scale)(X, T)
        np.testing.assert_allclose(guided[0][:, i], alone[0][:, i], atol=1e-6)


def test_interval():
    guided = classifier_free(VP, constant(0.5), constant(0.1), 3.0, interval=(200.0, 600.0))
    free = classifier_free(VP, constant(0.5), constant(0.1), 3.0)
    for level, expected in [(100.0, constant(0.5)), (500.0, free), (700.0, constant(0.5))]:
        t = jnp.full((2, 3), level)
        np.testing.assert_array_equal(guided(X, t), expected(X, t))


def under(offsets):
    """The answer under conditions [b, 1], one an example."""
    return lambda xt, t: constant(offsets.reshape(-1, 1, 1, 1, 1))(xt, t)


YES, NO = jnp.array([[0.5], [0.2]]), jnp.array([[0.1], [-0.3]])


@pytest.mark.parametrize("how", [{}, {"rescale": 0.7}, {"interval": (200.0, 600.0)}])
@pytest.mark.parametrize("scale", [3.0, jnp.array([1.0, 2.0, 3.0])])
def test_one_call_of_twice_the_batch_is_two_calls(scale, how):
    calls = []

    def both(xt, t):
        calls.append(xt.shape[0])
        return under(in_turn(YES, NO))(xt, t)

    for level in (500.0, 700.0):
        t = jnp.full((2, 3), level)
        once = at_once(VP, both, scale, conditional=under(YES), **how)(X, t)
        np.testing.assert_allclose(once, classifier_free(VP, under(YES), under(NO), scale, **how)(X, t), atol=1e-5)
    assert set(calls) == {4}


def test_one_call_is_none_where_nothing_is_guided():
    never = lambda xt, t: (jnp.full_like(xt, jnp.nan),) * 2
    exact = lambda xt, t: (0.5 * xt, -xt)  # however it is compiled
    for scale, interval in ((1.0, None), (3.0, (600.0, 700.0))):
        guided = at_once(VP, never, scale, conditional=exact, interval=interval)
        np.testing.assert_array_equal(guided(X, T), exact(X, T))


@pytest.mark.parametrize("prediction", schedules.PREDICTIONS)
def test_full_rescale_has_the_conditional_std(prediction):
    uncond = lambda xt, t: VP.x0_eps(-0.4 * xt, xt, t, "x0")
    guided = classifier_free(VP, constant(0.5), uncond, 7.0, rescale=1.0, prediction=prediction)(X, T)
    std = lambda pair: np.std(np.asarray(VP.target(*pair, T, prediction)), axis=(1, 2, 3, 4))
    np.testing.assert_allclose(std(guided), std(constant(0.5)(X, T)), rtol=1e-4)
    consistent(*guided, X, T)


def test_threshold():
    x0, eps = threshold(VP, constant(1.0))(X, T)
    np.testing.assert_array_equal(x0, jnp.clip(constant(1.0)(X, T)[0], -1, 1))
    consistent(x0, eps, X, T)
    wide = lambda xt, t: VP.x0_eps(2 * xt, xt, t, "x0")
    x0, eps = threshold(VP, wide, percentile=90.0)(X, T)
    for found, raw in zip(np.asarray(x0), np.asarray(2 * X)):  # Saharia et al. 2022, section 2.3
        s = max(np.percentile(np.abs(raw), 90), 1)
        np.testing.assert_allclose(found, np.clip(raw, -s, s) / s, atol=1e-5)
    consistent(x0, eps, X, T)
    np.testing.assert_array_equal(threshold(VP, constant(0.0), percentile=90.0)(X, T)[0], constant(0.0)(X, T)[0])


def test_network_sees_known_frames_at_their_own_level():
    known, eps = jnp.full_like(X, 0.3), jax.random.normal(jax.random.key(5), X.shape)
    asked = []

    def record(xt, t):
        asked.append((xt, t))
        return constant(0.5)(xt, t)

    x0, _ = known_frames(VP, record, known, MASK, level=20.0, eps=eps)(X, T)
    (xt, t), here = asked[0], MASK > 0.5
    np.testing.assert_array_equal(t, jnp.where(here, 20.0, 500.0))
    np.testing.assert_allclose(xt[here], VP.q_sample(known, eps, 20.0)[here], atol=1e-6)
    np.testing.assert_array_equal(xt[~here], X[~here])
    np.testing.assert_array_equal(x0[here], known[here])
    np.testing.assert_array_equal(x0[~here], constant(0.5)(X, T)[0][~here])
    known_frames(VP, record, known, MASK, show=False)(X, T)
    np.testing.assert_array_equal(asked[1][0], X)
    np.testing.assert_array_equal(asked[1][1], T)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", [VP, schedules.edm()], ids=["vp", "edm"])
def test_every_sampler_ends_on_the_known_frames_guided_or_not(name, schedule):
    known = jax.random.normal(jax.random.key(7), X.shape)
    shown = known_frames(schedule, constant(0.5, schedule), known, MASK)
    guided = classifier_free(schedule, shown, constant(0.1, schedule), 4.0, rescale=0.7)
    clamped = known_frames(schedule, guided, known, MASK, show=False)
    x = schedule.sigma(schedule.noisiest) * X
    found = sample(clamped, schedule, x, schedule.timesteps(4), 4, SAMPLERS[name](), KEY)
    rounded = 1e-5 if name == "pndm" else 0.0  # its last step is along a mean of four eps
    np.testing.assert_allclose(found[MASK > 0.5], known[MASK > 0.5], rtol=0, atol=rounded)
    assert float(jnp.abs(found - known)[MASK < 0.5].max()) > 0.1


BOX = jnp.zeros((3, 4, 4)).at[1:, :2, 1:3].set(1)  # pixels of the last two frames
EDITS = {"frames": jnp.array([0.0, 1.0, 0.0]), "box": BOX, "box_each": jnp.stack([BOX, 1 - BOX])}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "unipc"])
def test_an_edit_stays_inside_its_mask_bit_for_bit(name, sampler):
    source = jax.random.normal(jax.random.key(7), X.shape)
    edited = keep(VP, constant(0.5), source, EDITS[name])
    found = sample(edited, VP, X, VP.timesteps(4), 4, SAMPLERS[sampler](), KEY)
    mask = EDITS[name] if EDITS[name].ndim == 4 else EDITS[name][None]
    inside = np.broadcast_to(mask.reshape(*mask.shape, *(1,) * (5 - mask.ndim)), X.shape) > 0.5
    np.testing.assert_array_equal(found[~inside], source[~inside])
    assert np.abs(np.asarray(found - source))[inside].min() > 0
    if name == "frames" and sampler == "ddim":  # what works on pixels one by one does not notice the mask
        free = sample(constant(0.5), VP, X, VP.timesteps(4), 4, SAMPLERS[sampler](), KEY)
        np.testing.assert_allclose(found[inside], free[inside], atol=1e-6)


def test_what_is_kept_follows_the_noise_of_its_own_trajectory():
    """On the way, kept pixels are those of q_sample: the network sees one noise level."""
    source, eps = jnp.full_like(X, 0.3), jax.random.normal(jax.random.key(5), X.shape)
    x0, noise = keep(VP, constant(0.5), source, BOX)(VP.q_sample(source, eps, T), T)
    outside = np.broadcast_to((BOX == 0)[None, ..., None], X.shape)
    np.testing.assert_array_equal(x0[outside], source[outside])
    np.testing.assert_allclose(noise[outside], eps[outside], atol=1e-5)


def test_only_frames_known_whole_are_shown_as_known():
    asked = []

    def record(xt, t):
        asked.append((xt, t))
        return constant(0.5)(xt, t)

    mask = jnp.ones((2, 3, 4, 4)).at[:, 1, 0].set(0).at[:, 2].set(0)
    known_frames(VP, record, jnp.full_like(X, 0.3), mask, level=20.0)(X, T)
    (xt, t) = asked[0]
    np.testing.assert_array_equal(t, jnp.broadcast_to(jnp.array([20.0, 500.0, 500.0]), (2, 3)))
    np.testing.assert_array_equal(xt[:, 0], np.float32(0.3))
    np.testing.assert_array_equal(xt[:, 1:], X[:, 1:])


def test_regions():
    left = jnp.zeros((3, 4, 4)).at[:, :, :2].set(1)
    one, two = constant(0.5), constant(-0.2)
    x0, eps = regions([one, two], [left, 1 - left])(X, T)
    for part, own, other in zip((x0, eps), one(X, T), two(X, T)):
        np.testing.assert_array_equal(part[:, :, :, :2], own[:, :, :, :2])
        np.testing.assert_array_equal(part[:, :, :, 2:], other[:, :, :, 2:])
    # Weights are relative, so a pair stays one of x0 and eps; where no mask is, the first answers.
    x0, eps = regions([one, two], [3 * left, left])(X, T)
    consistent(x0, eps, X, T)
    expected = jnp.where(left[None, ..., None] > 0, 0.75 * one(X, T)[0] + 0.25 * two(X, T)[0], one(X, T)[0])
    np.testing.assert_allclose(x0, expected, atol=1e-6)
    np.testing.assert_allclose(regions([one, one], [left, 1 + left])(X, T), one(X, T), atol=1e-6)
    frames = regions([one, two], [jnp.array([1.0, 0, 0]), jnp.array([0, 1.0, 1])])(X, T)[0]
    np.testing.assert_array_equal(frames, jnp.concatenate([one(X, T)[0][:, :1], two(X, T)[0][:, 1:]], 1))
    with pytest.raises(InputError, match="2 denoisers come with 1 masks"):
        regions([one, two], [left])


def test_chunks_of_a_denoiser_by_frames_change_nothing():
    denoise = lambda xt, t: (xt * 0.5 + t[:, :, None, None, None], jnp.tanh(xt))
    xt, t = jax.random.normal(KEY, (2, 23, 2, 2, 3)), jnp.broadcast_to(jnp.linspace(0.1, 0.9, 23), (2, 23))
    for frames, overlap in ((8, 3), (5, 0), (22, 21), (23, 4), (40, 2)):
        for ours, theirs in zip(in_chunks(denoise, frames, overlap)(xt, t), denoise(xt, t)):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_every_chunk_sees_the_first_frame_of_the_clip():
    """A denoiser that answers with its first frame answers with the clip's, wherever the chunk lies."""
    first = lambda xt, t: (jnp.broadcast_to(xt[:, :1], xt.shape), xt)
    xt = jax.random.normal(KEY, (1, 17, 2, 2, 1))
    x0, _ = in_chunks(first, 6, 2)(xt, jnp.full((1, 17), 0.5))
    np.testing.assert_allclose(x0[:, 6:], jnp.broadcast_to(xt[:, :1], x0[:, 6:].shape), rtol=1e-6)
    with pytest.raises(InputError, match="cannot overlap by 6"):
        in_chunks(first, 6, 6)


def mixing(xt, t):
    """Every frame's answer depends on all frames: whatever leaks into one of them shows in all."""
    return VP.x0_eps(jnp.tanh(xt) + xt.mean(1, keepdims=True), xt, t, "x0")


def test_the_pass_without_known_frames_never_sees_them():
    """If the other pass does not answer by the known frames, nothing of them is anywhere in the result."""
    alone = lambda xt, t: VP.x0_eps(0.3 * jnp.cos(xt), xt, t, "x0")  # each pixel by itself
    made = []
    for seed in (7, 8):
        known = jax.random.normal(jax.random.key(seed), X.shape)
        shown = known_frames(VP, alone, known, MASK, level=20.0, eps=X)
        made.append(sample(from_known(shown, mixing, MASK, 1.5), VP, X, VP.timesteps(4), 4, SAMPLERS["ddim"](), KEY))
    np.testing.assert_array_equal(*made)
    clamped = lambda known: known_frames(VP, from_known(shown, mixing, MASK, 1.5), known, MASK, show=False)
    leaks = [sample(clamped(k), VP, X, VP.timesteps(4), 4, SAMPLERS["ddim"](), KEY) for k in (known, -known)]
    assert np.abs(np.asarray(leaks[0] - leaks[1]))[MASK < 0.5].max() > 0.1  # the test would notice


def test_guidance_away_from_what_is_said_without_known_frames():
    shown = known_frames(VP, constant(0.5), jnp.full_like(X, 0.3), MASK)
    x0, eps = from_known(shown, constant(0.1), MASK, 1.5)(X, T)
    unknown = MASK < 0.5
    np.testing.assert_allclose(x0[unknown], (0.1 + 1.5 * 0.4 + 0.1 * jnp.sin(7 * X))[unknown], atol=1e-5)
    np.testing.assert_array_equal(x0[~unknown], constant(0.1)(X, T)[0][~unknown])
    consistent(x0, eps, X, T)


COVARIANCE = np.array([[1.0, 0.8], [0.8, 1.0]])  # of two frames of one pixel


def gaussian(xt, t):
    """The exact denoiser of such frames: x0 = alpha S (alpha^2 S + sigma^2)^-1 xt; t is the same for both."""
    alpha, sigma = (part[:, 0] for part in VP.path(t))
    mean = lambda a, s, x: a * COVARIANCE @ jnp.linalg.solve(a**2 * COVARIANCE + s**2 * jnp.eye(2), x)
    return VP.x0_eps(jax.vmap(mean)(alpha, sigma, xt[..., 0, 0, 0]).reshape(xt.shape), xt, t, "x0")


@pytest.mark.parametrize("level", [50.0, 300.0, 600.0, 900.0])
def test_reconstruction_guidance_of_gaussian_frames_is_their_conditional_mean(level):
    t = jnp.full((2, 2), level)
    alpha, sigma = (float(part) for part in VP.path(jnp.float32(level)))
    xt, known = jax.random.normal(KEY, (2, 2, 1, 1, 1)), jnp.array([0.7, -1.2]).reshape(2, 1, 1, 1, 1)
    noisy = alpha**2 * COVARIANCE + sigma**2 * np.eye(2)
    variance = (COVARIANCE - alpha**2 * COVARIANCE @ np.linalg.solve(noisy, COVARIANCE))[0, 0]
    x0, mask = jnp.concatenate([known, 9 * jnp.ones_like(known)], 1), jnp.array([[1.0, 0.0]] * 2)
    found, eps = reconstruction(VP, gaussian, x0, mask, sigma**2 / alpha**2 / variance)(xt, t)
    prior, spread = 0.8 * known[:, 0], 1 - 0.8**2  # of the second frame, given the first
    exact = prior + spread * alpha / (alpha**2 * spread + sigma**2) * (xt[:, 1] - alpha * prior)
    np.testing.assert_allclose(found[:, 1], exact, rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(found[:, 0], x0[:, 0])
    np.testing.assert_allclose(VP.q_sample(found, eps, t), xt, atol=1e-4)
    replaced = known_frames(VP, gaussian, x0, mask, show=False)(xt, t)
    for ours, theirs in zip(reconstruction(VP, gaussian, x0, mask, 0.0)(xt, t), replaced):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_sampled_with_reconstruction_guidance_the_mean_comes_nearer_to_the_conditional_one():
    count, first = 2000, 1.5
    x0, mask = jnp.full((count, 2, 1, 1, 1), first), jnp.broadcast_to(jnp.array([1.0, 0.0]), (count, 2))
    x, times = jax.random.normal(KEY, x0.shape), VP.timesteps(100)
    guided = lambda weight: reconstruction(VP, gaussian, x0, mask, weight)
    run = jax.jit(lambda weight: sample(guided(weight), VP, x, times, 100, SAMPLERS["ddim"](), KEY))
    off = [abs(float(run(weight)[:, 1].mean()) - 0.8 * first) for weight in (0.0, 1.0, 2.0, 4.0)]
    assert (np.diff(off) < -0.1).all() and off[0] > 0.5 and off[-1] < 0.15, off
