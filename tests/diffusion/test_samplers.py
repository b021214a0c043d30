"""Gaussian data has its exact denoiser and its exact probability flow, so every sampler can be held to closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.diffusion import schedule as schedules
from vidjax.diffusion.samplers import SAMPLERS, ddim, ddim_inverse, ddpm, dpmpp_2m, dpmpp_2m_sde, sample
from vidjax.errors import InputError

KEY = jax.random.key(0)
MEAN, STD = 0.7, 0.5
VP, EDM, FLOW = schedules.lvdm(), schedules.edm(), schedules.flow()


def gaussian(schedule, mean=MEAN, std=STD):
    """E[x0 | xt] for x0 ~ N(mean, std^2); a point mass for std = 0."""

    def denoise(xt, t):
        alpha, sigma = schedule.levels(t, xt)
        x0 = mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (xt - alpha * mean)
        return schedule.x0_eps(x0, xt, t, "x0")

    return denoise


def ode(schedule, x, t, t_next):
    """The probability flow of Gaussian data: the standardised x stays where it is."""
    spread = lambda t: jnp.sqrt(schedule.alpha(t) ** 2 * STD**2 + schedule.sigma(t) ** 2)
    z = (x - schedule.alpha(t) * MEAN) / spread(t)
    return schedule.alpha(t_next) * MEAN + spread(t_next) * z


@functools.cache
def runner(schedule, sampler):
    run = lambda x, times, num_steps: sample(gaussian(schedule), schedule, x, times, num_steps, sampler, KEY)
    return jax.jit(run)


@pytest.mark.parametrize("name, order", [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("unipc", 3)])
@pytest.mark.parametrize("schedule", [VP, EDM, FLOW], ids=["vp", "edm", "flow"])
def test_order_of_convergence(name, order, schedule):
    run, x = runner(schedule, SAMPLERS[name]()), jnp.linspace(-2, 2, 5)[None]
    errors = []
    for n in (8, 16, 32):
        times = schedule.time(np.linspace(-4, 1, n + 1))
        exact = ode(schedule, x, times[0], times[-1])
        found = run(x, np.pad(times, (0, 32 - n)).astype(np.float32), n)
        errors.append(float(jnp.abs(found - exact).max()))
    measured = np.log2(errors[0] / errors[2]) / 2
    print(f"{name}: order {measured:.2f}, errors {errors}")
    assert order - 0.3 < measured < order + 0.7, errors


def test_order_of_pndm_in_even_steps():
    """Three, that of its beginning: so much is lost where steps are not even in sigma / alpha."""
    x, errors = jnp.linspace(-2, 2, 5)[None], []
    for n in (16, 32):
        times = np.linspace(4, 0.5, n + 1).astype(np.float32)
        found = runner(EDM, SAMPLERS["pndm"]())(x, np.pad(times, (0, 32 - n)), n)
        errors.append(float(jnp.abs(found - ode(EDM, x, times[0], times[-1])).max()))
    assert 2.5 < np.log2(errors[0] / errors[1]) < 4, errors


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", [schedules.lvdm(zero_snr=True), EDM, FLOW], ids=["zero", "edm", "flow"])
def test_point_mass_is_found(name, schedule):
    x = schedule.sigma(schedule.noisiest) * jax.random.normal(KEY, (2, 3, 4))
    times = schedule.timesteps(10)
    found = sample(gaussian(schedule, std=0.0), schedule, x, times, 10, SAMPLERS[name](), KEY)
    np.testing.assert_allclose(found, MEAN, atol=1e-4 if name == "pndm" else 1e-5)  # its weights raise rounding


@pytest.mark.parametrize("schedule", [VP, EDM, FLOW, schedules.cosine(None)], ids=["vp", "edm", "flow", "cosine"])
def test_ddim_with_the_exact_denoiser_lands_on_q_sample(schedule):
    x0, eps = jnp.full((2, 3, 4), MEAN), jax.random.normal(KEY, (2, 3, 4))
    times = schedule.timesteps(10)
    for t, t_next in [(times[1], times[4]), (times[4], times[1])]:
        x = schedule.q_sample(x0, eps, t)
        x, _ = ddim().step(gaussian(schedule, std=0.0), schedule, x, t, t_next, (), KEY)
        np.testing.assert_allclose(x, schedule.q_sample(x0, eps, t_next), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", [ddpm(), ddpm("large"), ddim(eta=1.0), ddim(eta=0.5), dpmpp_2m_sde()])
def test_stochastic_samplers_have_the_mean_and_variance_of_the_data(sampler):
    x = jax.random.normal(jax.random.key(1), (100, 100))
    found = runner(VP, sampler)(x, VP.timesteps(1000), 1000)
    np.testing.assert_allclose([found.mean(), found.std()], [MEAN, STD], rtol=2e-2)


def test_the_mean_of_the_stochastic_multistep_is_that_of_the_posterior():
    """E[x0 | xt] is a martingale of the exact process, so that steps of any length keep the mean: two starts under the
    same noise come as close as Gaussian data says."""
    times = VP.time(np.linspace(-4, 1, 5)).astype(np.float32)
    (a, s), (a1, s1) = VP.path(times[0]), VP.path(times[-1])
    exact = a / a1 * (a1**2 * STD**2 + s1**2) / (a**2 * STD**2 + s**2)
    near, far = (runner(VP, dpmpp_2m_sde())(jnp.full((1, 1), x), times, 4) for x in (0.0, 1.0))
    np.testing.assert_allclose((far - near).item(), exact, rtol=1e-5)


def test_the_stochastic_multistep_without_noise_is_the_other():
    """Down to clean data, which of one of the schedules has no noise at all."""
    x = jax.random.normal(KEY, (2, 3, 4))
    for schedule in (VP, schedules.cosine(steps=None)):
        a, b = (runner(schedule, s)(x, schedule.timesteps(10), 10) for s in (dpmpp_2m(), dpmpp_2m_sde(eta=0.0)))
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_ddpm_is_ddim_with_eta_one():
    x, times = jax.random.normal(KEY, (2, 3, 4)), VP.timesteps(10)
    a, b = (sample(gaussian(VP), VP, x, times, 10, s, KEY) for s in (ddpm(), ddim(eta=1.0)))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_ddpm_large_variance_is_beta():
    t, x = 500.0, jnp.zeros((100, 100))
    found, _ = ddpm("large").step(gaussian(VP), VP, x, t, t - 1, (), KEY)
    beta = 1 - (VP.alpha(t) / VP.alpha(t - 1)) ** 2
    np.testing.assert_allclose(found.std(), jnp.sqrt(beta), rtol=2e-2)


@pytest.mark.parametrize("inverse", [ddim(), ddim_inverse()], ids=["exact", "aimed"])
def test_inversion_then_sampling_returns_the_input(inverse):
    x0 = MEAN + STD * jax.random.normal(KEY, (2, 3, 4))
    errors = []
    for n in (10, 40, 160):
        times = np.pad(VP.timesteps(n), (0, 160 - n))
        noise = runner(VP, inverse)(x0, np.pad(VP.timesteps(n)[::-1], (0, 160 - n)), n)
        errors.append(float(jnp.abs(runner(VP, ddim())(noise, times, n) - x0).max()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.1, errors
    np.testing.assert_allclose(noise, ode(VP, x0, VP.clean, VP.noisiest), atol=0.1)


def test_padding_and_progress():
    seen, x, times = [], jax.random.normal(KEY, (2, 3, 4)), VP.timesteps(6)
    short = sample(gaussian(VP), VP, x, times, 6, SAMPLERS["unipc"](), KEY, progress=lambda i: seen.append(int(i)))
    padded = runner(VP, SAMPLERS["unipc"]())(x, np.pad(times, (0, 9)), 6)
    jax.effects_barrier()
    np.testing.assert_allclose(short, padded, atol=1e-5)
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]


def test_a_look_sees_the_clean_data_that_each_step_predicts():
    """Along the exact path of one sample they are its clean end, at every time."""
    seen, x0, times = {}, jnp.linspace(-1, 1, 24).reshape(2, 3, 4), VP.timesteps(4)
    x = VP.q_sample(x0, jax.random.normal(KEY, x0.shape), times[0])
    exact = lambda xt, t: VP.x0_eps(jnp.broadcast_to(x0, xt.shape), xt, t, "x0")
    look = lambda i, clean: seen.update({int(i): np.asarray(clean)})
    for name in ("heun", "unipc"):
        seen.clear()
        sample(exact, VP, x, times, 4, SAMPLERS[name](), KEY, look=look)
        jax.effects_barrier()
        assert sorted(seen) == [1, 2, 3, 4]
        for clean in seen.values():
            np.testing.assert_allclose(clean, x0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_an_error_in_the_progress_ends_the_sampler_there():
    seen, x, times = [], jnp.ones((2, 3, 4)), VP.timesteps(6)

    def stop(done):
        seen.append(int(done))
        if done == 2:
            raise KeyError("stop")

    with pytest.raises(jax.errors.JaxRuntimeError):
        jax.block_until_ready(sample(gaussian(VP), VP, x, times, 6, SAMPLERS["ddim"](), KEY, progress=stop))
    assert seen == [1, 2]


def test_denoiser_is_asked_per_frame():
    def denoise(xt, t):
        assert t.shape == xt.shape[:2]
        return gaussian(VP)(xt, t)

    for name in SAMPLERS:
        run = lambda x, make=SAMPLERS[name]: sample(denoise, VP, x, VP.timesteps(2), 2, make(), KEY)
        jax.eval_shape(run, jnp.zeros((2, 3, 4, 4, 1)))


def test_unknown_variance():
    with pytest.raises(InputError, match="learned"):
        ddpm("learned")
