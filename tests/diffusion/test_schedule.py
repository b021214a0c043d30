"""Round trips between predictions, published equations of the schedules, both ends of time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.diffusion import samplers
from vidjax.diffusion import schedule as schedules
from vidjax.diffusion.schedule import PREDICTIONS, SCHEDULES, SPACINGS
from vidjax.errors import InputError

EVERY = {
    **{name: make() for name, make in SCHEDULES.items()},
    "zero_snr": schedules.scaled_linear(zero_snr=True),
    "between": schedules.cosine_between(used=700),
    "continuous": schedules.cosine(steps=None, shift=2.0),
    "edm_half": schedules.edm(sigma_data=0.5),
    "of_levels": schedules.of_levels(lambda t: jnp.cos(jnp.pi / 2 * t), lambda t: jnp.sin(jnp.pi / 2 * t), 0.99),
    "shifted_flow": schedules.flow(shift=3.0, std=1.0),
}
every = pytest.mark.parametrize("schedule", EVERY.values(), ids=EVERY.keys())


def draw(seed=0, shape=(2, 3, 2, 2, 1)):
    return jax.random.normal(jax.random.key(seed), shape), jax.random.normal(jax.random.key(seed + 1), shape)


@every
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predictions_round_trip(schedule, prediction):
    x0, eps = draw()
    t = schedule.sample_t(jnp.array([[0.1, 0.3, 0.5], [0.6, 0.7, 0.8]]))
    xt = schedule.q_sample(x0, eps, t)
    found = schedule.x0_eps(schedule.target(x0, eps, t, prediction), xt, t, prediction)
    np.testing.assert_allclose(found[0], x0, atol=2e-5 * float(jnp.exp(-schedule.logsnr(t) / 2).max() + 1))
    np.testing.assert_allclose(found[1], eps, atol=2e-5 * float(jnp.exp(schedule.logsnr(t) / 2).max() + 1))


@every
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_both_ends_are_finite_and_right(schedule, prediction):
    x0, eps = draw()
    for t in (schedule.clean, schedule.noisiest):
        xt = schedule.q_sample(x0, eps, t)
        back = schedule.x0_eps(schedule.target(x0, eps, t, prediction), xt, t, prediction)
        assert all(bool(jnp.isfinite(y).all()) for y in (*back, schedule.logsnr(t), *schedule.network_input(xt, t)))
        np.testing.assert_allclose(schedule.q_sample(*back, t), xt, rtol=1e-5, atol=1e-5)
    assert float(schedule.alpha(schedule.clean)) == 1
    assert float(schedule.sigma(schedule.clean)) == 0


@every
def test_noise_grows_with_time_and_logsnr_inverts(schedule):
    t = schedule.clean + (schedule.noisiest - schedule.clean) * np.linspace(0.03, 0.97, 60)
    logsnr = np.asarray(schedule.logsnr(t), np.float64)
    assert (np.diff(logsnr) < 0).all()
    np.testing.assert_allclose(schedule.time(logsnr), t, rtol=1e-4)
    u = schedule.sample_t(jnp.linspace(0, 1 - 1e-7, 50))
    assert bool((jnp.diff(u) >= 0).all()) and bool(jnp.isfinite(u).all())


def test_tables_are_the_published_ones():
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = [np.prod(1 - betas[: t + 1]) for t in (0, 10, 500, 999)]  # Ho et al. 2020, under eq. 4
    np.testing.assert_allclose(schedules.linear().alpha(np.array([0, 10, 500, 999])) ** 2, alpha_bar, rtol=2e-6)
    f = lambda t: np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2  # Nichol & Dhariwal 2021 eq. 17
    t = np.array([0, 10, 500, 900])
    np.testing.assert_allclose(schedules.cosine().alpha(t) ** 2, f(t + 1) / f(0), rtol=1e-4)


def test_zero_terminal_snr():
    plain, zero = schedules.scaled_linear(), schedules.scaled_linear(zero_snr=True)
    assert float(zero.alpha(999)) == 0 and float(zero.sigma(999)) == 1
    np.testing.assert_allclose(zero.alpha(0), plain.alpha(0), rtol=1e-6)  # Lin et al. 2024: the first stays
    shift = float(plain.alpha(999))
    ratio = (np.asarray(zero.alpha(np.arange(999))) / (np.asarray(plain.alpha(np.arange(999))) - shift)).astype(float)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


def test_cosine_between_two_shifts():
    """At its ends the cosine's own logsnr less twice the logarithm of either shift, in the middle their mean; with one
    shift it is the continuous cosine of that shift between the same ends; entries left out change no other."""
    whole, part = schedules.cosine_between(1001), schedules.cosine_between(1001, used=700)
    wanted = [15 - 2 * np.log(2), -np.log(2 * 4), -15 - 2 * np.log(4)]
    np.testing.assert_allclose(whole.logsnr(np.array([0, 500, 1000])), wanted, rtol=1e-4)
    np.testing.assert_allclose(part.path(jnp.arange(700)), whole.path(jnp.arange(700)), rtol=1e-6)
    assert (part.noisiest, part.steps) == (699, 700)
    same, base = schedules.cosine_between(1001, 3.0, 3.0), schedules.cosine(None, shift=3.0)
    ends = np.float64([2 * np.arctan(np.exp(power)) / np.pi for power in (-7.5, 7.5)])
    t = np.arange(0, 1001, 100)
    np.testing.assert_allclose(same.logsnr(t), base.logsnr(ends[0] + t / 1000 * (ends[1] - ends[0])), rtol=2e-3)


def test_set_alpha_to_one_is_the_end_of_ddim_and_pndm_alone():
    schedule = schedules.scaled_linear(set_alpha_to_one=False)
    ends = {name: samplers.times(make(), schedule, 5, "trailing")[-1] for name, make in samplers.SAMPLERS.items()}
    assert {name for name, end in ends.items() if end == 0} == {"ddim", "pndm"}
    assert {float(schedule.alpha(end)) for end in ends.values() if end != 0} == {1.0}


def test_between_two_entries_sigma_over_alpha_is_linear():
    schedule, w = schedules.scaled_linear(), 0.3
    ratio = lambda t: float(np.exp(-0.5 * np.float64(schedule.logsnr(t))))
    for low in (0, 40, 700):
        np.testing.assert_allclose(ratio(low + w), (1 - w) * ratio(low) + w * ratio(low + 1), rtol=1e-5)


def test_shift_scales_sigma_over_alpha():
    t = jnp.linspace(0.1, 0.9, 9)
    for plain, shifted in [
        (schedules.cosine(None), schedules.cosine(None, shift=4.0)),  # Hoogeboom et al. 2023, eq. 3
        (schedules.flow(), schedules.flow(shift=4.0)),
    ]:
        np.testing.assert_allclose(shifted.logsnr(t), plain.logsnr(t) - 2 * np.log(4), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(schedules.cosine(None).alpha(t), jnp.cos(jnp.pi * t / 2), atol=1e-6)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_is_v_prediction(sigma_data):
    schedule, (xt, f) = schedules.edm(sigma_data=sigma_data), draw()
    sigma = jnp.exp(jax.random.normal(jax.random.key(3), xt.shape[:2]))
    s = sigma[..., None, None, None]
    c_skip, c_out = sigma_data**2 / (s**2 + sigma_data**2), s * sigma_data / jnp.sqrt(s**2 + sigma_data**2)
    x0, eps = schedule.x0_eps(-f, xt, sigma, "v")  # Karras et al. 2022, eq. 7 and table 1
    np.testing.assert_allclose(x0, c_skip * xt + c_out * f, atol=1e-5)
    np.testing.assert_allclose(x0 + s * eps, xt, atol=1e-4)
    scaled, noise = schedule.network_input(xt, sigma)
    np.testing.assert_allclose(scaled, xt / jnp.sqrt(s**2 + sigma_data**2), rtol=1e-5)
    np.testing.assert_allclose(noise, jnp.log(sigma) / 4, atol=1e-6)


def test_training_times_have_their_distribution():
    u = (jnp.arange(4000) + 0.5) / 4000
    log_sigma = jnp.log(schedules.edm(mean=-0.7, std=1.4).sample_t(u))
    np.testing.assert_allclose([log_sigma.mean(), log_sigma.std()], [-0.7, 1.4], atol=1e-2)
    logit = jax.scipy.special.logit(schedules.flow(mean=0.5, std=0.8).sample_t(u))
    np.testing.assert_allclose([logit.mean(), logit.std()], [0.5, 0.8], atol=1e-2)
    counts = np.bincount(np.asarray(schedules.linear(steps=10).sample_t(u), int))
    np.testing.assert_allclose(counts, 400, atol=1)


@every
@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_fall_to_clean(schedule, spacing):
    times = schedule.timesteps(7, spacing)
    assert times.shape == (8,) and times[-1] == schedule.clean and (np.diff(times) < 0).all()
    logsnr = np.asarray(schedule.logsnr(times[:-1]), np.float64)
    if spacing == "logsnr":
        np.testing.assert_allclose(np.diff(logsnr, 2), 0, atol=2e-2)
    if spacing == "karras":
        np.testing.assert_allclose(np.diff(np.exp(-logsnr / 14), 2), 0, atol=1e-2 * np.exp(-logsnr[0] / 14))


def test_static_under_jit_and_made_once():
    assert schedules.linear(100) is schedules.linear(100)
    assert len({schedules.linear(100), schedules.linear(100), schedules.lvdm(100)}) == 2
    q = jax.jit(lambda schedule, x, t: schedule.q_sample(x, x, t), static_argnums=0)
    x, _ = draw()
    np.testing.assert_allclose(q(schedules.lvdm(), x, 10.0), schedules.lvdm().q_sample(x, x, 10.0), rtol=1e-6)


def test_arithmetic_is_fp32():
    x0, eps = (y.astype(jnp.bfloat16) for y in draw())
    schedule = schedules.linear()
    assert schedule.q_sample(x0, eps, 3).dtype == jnp.float32
    assert all(y.dtype == jnp.float32 for y in schedule.x0_eps(eps, x0, 3, "v"))


def test_bad_input_names_the_value():
    with pytest.raises(InputError, match="epsilon"):
        schedules.linear().target(*draw(), 3, "epsilon")
    with pytest.raises(InputError, match="even"):
        schedules.linear().timesteps(5, "even")
    with pytest.raises(InputError, match="1001"):
        schedules.linear().timesteps(1001)
    with pytest.raises(InputError, match="shift"):
        schedules.cosine(1000, shift=2.0)


def test_data_may_lose_contrast_under_noise():
    """VideoCrafter's scale: x0 comes out of xt as it went in, DDIM with its noise takes the steps of theirs, and starts
    from noise alone."""
    base = dataclasses.replace(schedules.scaled_linear(set_alpha_to_one=False), spacing="leading", offset=1)
    scaled = schedules.scale_data(base, 0.7)
    factors = np.concatenate([np.linspace(1, 0.7, 400), np.full(600, 0.7)])
    t = np.arange(1000.0, dtype=np.float32)
    np.testing.assert_allclose(scaled.alpha(t), factors * base.alpha(t), rtol=1e-5)
    np.testing.assert_array_equal(scaled.sigma(t), base.sigma(t))
    np.testing.assert_allclose(scaled.time(np.float64(scaled.logsnr(t[::90]))), t[::90], atol=1e-2)
    x, key, steps = np.linspace(-1, 1, 6, dtype=np.float32)[None, :, None], jax.random.key(0), 10
    alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    predict = lambda x, t: 0.5 * x + t / 1000
    denoise = lambda x, t: scaled.x0_eps(predict(x, t[..., None]), x, t, "eps")
    sampler = samplers.ddim(eta=1.0)
    times = samplers.times(sampler, scaled, steps)
    np.testing.assert_array_equal(times, [*range(901, 0, -100), 0])
    got = samplers.sample(denoise, scaled, x * scaled.std(times[0]), times, steps, sampler, key)
    for i, (t, before) in enumerate(zip(times[:-1].astype(int), times[1:].astype(int))):
        a, b, eps = alphas[t], alphas[before], predict(x, np.float32(t))
        x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a) / factors[t]
        noise = np.sqrt((1 - b) / (1 - a) * (1 - a / b))
        x = np.sqrt(b) * factors[before] * x0 + np.sqrt(1 - b - noise**2) * eps
        x = (x + noise * jax.random.normal(jax.random.fold_in(key, i), x.shape)).astype(np.float32)
    np.testing.assert_allclose(got, x, rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match="x0 cannot be scaled to 0"):
        schedules.scale_data(base, 0.0)
