"""Step by step against `diffusers`, both sides asking one and the same network: the times, and every x on the way."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.diffusion import samplers
from vidjax.diffusion import schedule as schedules
from vidjax.diffusion.guidance import classifier_free
from vidjax.diffusion.samplers import SAMPLERS, ddim, ddim_inverse, ddpm
from vidjax.weights import configs

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

KIND = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
BETAS = {"beta_start": 0.0015, "beta_end": 0.0155, "beta_schedule": "scaled_linear"}
KEY, OTHER = jax.random.key(0), jax.random.key(1)
SAMPLER = {name: make() for name, make in SAMPLERS.items()}
DDPM = {"small": ddpm("small"), "large": ddpm("large")}
DDIM, DDIM_INVERSE = ddim(), ddim_inverse()
every_kind = pytest.mark.parametrize("kind", KIND)
both_spacings = pytest.mark.parametrize("spacing", ["leading", "trailing"])


def network(x, t, xp=np):
    """Smooth, nonlinear, and told the time; numpy for their side, jnp for ours."""
    return 0.7 * xp.sin(3 * x + 0.002 * t) + 0.2 * x


def noise(shape=(1, 2, 3, 3, 2)):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@functools.cache
def stepper(sampler, schedule, kind, sign):
    """One compiled step; `tell`, unless nan, is the time that the network is told instead of its own."""

    def step(x, t, t_next, carry, key, tell):
        def denoise(xt, t):
            shown, told = schedule.network_input(xt, t)
            pred = sign * network(shown, jnp.where(jnp.isnan(tell), told, tell), jnp)
            return schedule.x0_eps(pred, xt, t, kind)

        return sampler.step(denoise, schedule, x, t, t_next, carry, key)

    return jax.jit(step)


def ours(sampler, schedule, kind, x, times, tell=None, key=KEY, sign=1):
    """Every x after times[0]."""
    x, step, path = jnp.asarray(x), stepper(sampler, schedule, kind, sign), []
    carry = sampler.init(x)
    for i, (t, t_next) in enumerate(itertools.pairwise(np.float32(times))):
        x, carry = step(x, t, t_next, carry, key, np.float32(np.nan if tell is None else tell[i]))
        path.append(np.asarray(x))
    return path


def theirs(scheduler, x, **options):
    """Every x after the first, in the scheduler's own coordinates."""
    x, path = torch.tensor(np.asarray(x)), []
    for t in scheduler.timesteps:
        shown = scheduler.scale_model_input(x, t)
        pred = torch.tensor(network(shown.numpy(), float(t)), dtype=torch.float32)
        x = scheduler.step(pred, t, x, **options).prev_sample
        path.append(x.numpy())
    return path


def same(ours, theirs, tolerance=2e-4):
    assert len(ours) == len(theirs)
    error = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, theirs))
    print(f"largest relative error {error:.1e}")
    assert error < tolerance, error


@every_kind
@both_spacings
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_ddim(kind, spacing, to_one, zero_snr):
    if zero_snr and kind == "epsilon":
        pytest.skip("an eps says nothing at zero SNR: diffusers divides by zero, we take x0 = 0")
    options = {"set_alpha_to_one": to_one, "steps_offset": int(spacing == "leading"), "timestep_spacing": spacing}
    scheduler = diffusers.DDIMScheduler(
        **BETAS, **options, prediction_type=kind, clip_sample=False, rescale_betas_zero_snr=zero_snr
    )
    scheduler.set_timesteps(20)
    schedule = schedules.lvdm(zero_snr=zero_snr, set_alpha_to_one=to_one)
    times = samplers.times(DDIM, schedule, 20, spacing, offset=options["steps_offset"])
    np.testing.assert_array_equal(times[:-1], scheduler.timesteps)
    x = noise()
    same(ours(DDIM, schedule, KIND[kind], x, times), theirs(scheduler, x))


@every_kind
@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_ddim_with_noise(kind, eta):
    """Theirs is given the noise that our key draws."""
    scheduler = diffusers.DDIMScheduler(**BETAS, prediction_type=kind, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    schedule, x = schedules.lvdm(), noise()
    z = np.asarray(jax.random.normal(KEY, x.shape))
    times = schedule.timesteps(20, "trailing")
    found = ours(ddim(eta=eta), schedule, KIND[kind], x, times)
    same(found, theirs(scheduler, x, eta=eta, variance_noise=torch.tensor(z)))


@every_kind
@both_spacings
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("steps", [10, 1000])
def test_ddpm_mean_and_variance(kind, spacing, variance, steps):
    scheduler = diffusers.DDPMScheduler(
        **BETAS, prediction_type=kind, clip_sample=False, timestep_spacing=spacing, variance_type=f"fixed_{variance}"
    )
    scheduler.set_timesteps(steps)
    schedule, x = schedules.lvdm(), noise()
    times = schedule.timesteps(steps, spacing)
    np.testing.assert_array_equal(times[:-1], scheduler.timesteps)
    draw = lambda key: np.asarray(jax.random.normal(key, x.shape))
    for i in (0, steps // 2, steps - 2):
        pair, t = times[i : i + 2], int(times[i])
        pred = torch.tensor(network(x, times[i]), dtype=torch.float32)
        generator = lambda: torch.Generator().manual_seed(3)
        their = scheduler.step(pred, t, torch.tensor(x), generator=generator()).prev_sample.numpy()
        their_mean = (
            their
            - (std := float(scheduler._get_variance(t)) ** 0.5) * torch.randn(x.shape, generator=generator()).numpy()
        )
        (first,), (second,) = (ours(DDPM[variance], schedule, KIND[kind], x, pair, key=key) for key in (KEY, OTHER))
        same([first - second], [std * (draw(KEY) - draw(OTHER))])
        same([first - std * draw(KEY)], [their_mean])


@both_spacings
@every_kind
def test_ddim_inverse(kind, spacing):
    """Theirs tells the network the time it aims at; the conversion of its answer is theirs too, hence `tell`."""
    scheduler = diffusers.DDIMInverseScheduler(
        **BETAS, prediction_type=kind, clip_sample=False, timestep_spacing=spacing
    )
    scheduler.set_timesteps(20)
    schedule, x = schedules.lvdm(), noise()
    times = schedule.timesteps(20, spacing)[::-1]
    np.testing.assert_array_equal(times[1:], scheduler.timesteps)
    their = theirs(scheduler, x)
    if kind != "sample":  # at clean data an "x0" says nothing about eps: theirs is 0 / 0
        same(ours(DDIM, schedule, KIND[kind], x, times, tell=times[1:]), their)
    if kind == "epsilon":
        same(ours(DDIM_INVERSE, schedule, "eps", x, times), their)


def ve(schedule, path, times):
    """Our path in the coordinates of the sigma samplers, x / alpha."""
    return [x / float(schedule.alpha(t)) for x, t in zip(path, times[1:])]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@both_spacings
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_euler_and_heun(kind, spacing, name):
    theirs_class = {"euler": diffusers.EulerDiscreteScheduler, "heun": diffusers.HeunDiscreteScheduler}[name]
    scheduler = theirs_class(**BETAS, prediction_type=kind, timestep_spacing=spacing)
    scheduler.set_timesteps(20)
    schedule, x = schedules.lvdm(), noise()
    times = schedule.timesteps(20, spacing)
    np.testing.assert_array_equal(times[:-1], np.unique(scheduler.timesteps)[::-1])
    path = ve(schedule, ours(SAMPLER[name], schedule, KIND[kind], x, times), times)
    their = theirs(scheduler, x / float(schedule.alpha(times[0])))
    same(path, their if name == "euler" else [*their[1:-1:2], their[-1]])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_euler_karras_sigmas(kind):
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS, prediction_type=kind, use_karras_sigmas=True)
    scheduler.set_timesteps(12)
    schedule, x = schedules.lvdm(), noise()
    times = schedule.timesteps(12, "karras")
    np.testing.assert_allclose(jnp.exp(-schedule.logsnr(times[:-1]) / 2), scheduler.sigmas[:-1], rtol=1e-3)
    np.testing.assert_allclose(times[:-1], scheduler.timesteps, atol=0.1)  # theirs interpolates log sigma in t
    path = ours(SAMPLER["euler"], schedule, KIND[kind], x, times, tell=scheduler.timesteps.numpy())
    same(ve(schedule, path, times), theirs(scheduler, x / float(schedule.alpha(times[0]))))


@every_kind
@both_spacings
@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc"])
@pytest.mark.parametrize("steps", [8, 20])
def test_multistep(kind, spacing, name, steps):
    theirs_class = {"dpmpp_2m": diffusers.DPMSolverMultistepScheduler, "unipc": diffusers.UniPCMultistepScheduler}[name]
    scheduler = theirs_class(**BETAS, prediction_type=kind, timestep_spacing=spacing, solver_order=2)
    scheduler.set_timesteps(steps)
    schedule, x = schedules.lvdm(), noise()
    times = samplers.times(SAMPLER[name], schedule, steps, spacing)
    np.testing.assert_array_equal(times[:-1], scheduler.timesteps)
    same(ours(SAMPLER[name], schedule, KIND[kind], x, times), theirs(scheduler, x))


@every_kind
@both_spacings
def test_stochastic_multistep(kind, spacing):
    """Theirs is given the noise that our key draws."""
    options = dict(prediction_type=kind, timestep_spacing=spacing, algorithm_type="sde-dpmsolver++")
    scheduler = diffusers.DPMSolverMultistepScheduler(**BETAS, **options)
    scheduler.set_timesteps(20)
    schedule, x = schedules.lvdm(), noise()
    z = torch.tensor(np.asarray(jax.random.normal(KEY, x.shape)))
    sampler = SAMPLER["dpmpp_2m_sde"]
    times = samplers.times(sampler, schedule, 20, spacing)
    np.testing.assert_array_equal(times[:-1], scheduler.timesteps)
    same(ours(sampler, schedule, KIND[kind], x, times), theirs(scheduler, x, variance_noise=z))


CLASSES = {
    "ddim": diffusers.DDIMScheduler,
    "pndm": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
}
FOLDER = {  # Stable Diffusion's own scheduler_config.json
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"timestep_spacing": "leading"},
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "leading", "final_sigmas_type": "sigma_min"},
        {"prediction_type": "v_prediction", "timestep_spacing": "leading"},
    ],
    ids=["as published", "leading", "trailing", "sigma_min", "v"],
)
def test_every_sampler_on_a_stable_diffusion_folder(name, change):
    """The times that we choose from its config, and where they end."""
    if name == "pndm" and "prediction_type" in change:
        pytest.skip("theirs takes the mean of v, ours of eps: loading says so")
    config = FOLDER | change
    scheduler = CLASSES[name].from_config(config)
    scheduler.set_timesteps(20)
    (schedule, prediction), x = configs.schedule(config), noise()
    times = samplers.times(SAMPLER[name], schedule, 20)
    asked = scheduler.timesteps.numpy()
    asked = {"heun": [*asked[:1], *asked[1::2]], "pndm": [*asked[:1], *asked[2:]]}.get(name, asked)
    np.testing.assert_allclose(times[:-1], asked, rtol=1e-6)
    sigmas = name in ("euler", "heun")
    path = ours(SAMPLER[name], schedule, prediction, x, times)
    scale = float(schedule.alpha(times[0])) if sigmas else 1.0
    same((ve(schedule, path, times) if sigmas else path)[-1:], theirs(scheduler, x / scale)[-1:], 1e-5)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "unipc"])
def test_karras_spacing_of_a_folder(name):
    """The multistep ones tell the network the entry that is nearest, ours the fraction: both are told theirs here."""
    config = FOLDER | {"use_karras_sigmas": True}
    scheduler = CLASSES[name].from_config(config)
    scheduler.set_timesteps(20)
    (schedule, prediction), x = configs.schedule(config), noise()
    times = samplers.times(SAMPLER[name], schedule, 20)
    asked = scheduler.timesteps.numpy()
    asked = [*asked[:1], *asked[1::2]] if name == "heun" else asked
    np.testing.assert_allclose(times[:-1], asked, atol=0.1 if name in ("euler", "heun") else 0.55)
    sigmas = name in ("euler", "heun")
    path = ours(SAMPLER[name], schedule, prediction, x, times, tell=None if sigmas else asked)
    scale = float(schedule.alpha(times[0])) if sigmas else 1.0
    same((ve(schedule, path, times) if sigmas else path)[-1:], theirs(scheduler, x / scale)[-1:], 1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 12, 12))
    schedule, x = schedules.flow(shift=shift), noise()
    times = schedule.timesteps(12)
    np.testing.assert_allclose(schedule.network_input(jnp.zeros(13), times)[1][:-1], scheduler.timesteps, rtol=1e-5)
    scheduler.scale_model_input = lambda x, t: x
    same(ours(SAMPLER["euler"], schedule, "flow", x, times), theirs(scheduler, x))


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_edm(kind, sigma_data):
    """Their "epsilon" is EDM's F, their "v_prediction" its negative, which is our "v"."""
    scheduler = diffusers.EDMEulerScheduler(sigma_data=sigma_data, prediction_type=kind)
    scheduler.set_timesteps(12)
    schedule, x = schedules.edm(sigma_data=sigma_data), 80 * noise()
    times = schedule.timesteps(12)
    np.testing.assert_allclose(times, scheduler.sigmas, rtol=1e-5)
    np.testing.assert_allclose(schedule.network_input(jnp.zeros(13), times)[1][:-1], scheduler.timesteps, rtol=1e-5)
    sign = -1 if kind == "epsilon" else 1

    same(ours(DDIM, schedule, "v", x, times, sign=sign), theirs(scheduler, x))


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_guidance_rescale(prediction):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    schedule, x = schedules.lvdm(), jnp.asarray(noise())
    t, (cond, uncond) = jnp.full((1, 2), 600.0), (noise(), noise())
    denoise = lambda pred: lambda xt, t: schedule.x0_eps(jnp.asarray(pred), xt, t, prediction)
    guided = classifier_free(schedule, denoise(cond), denoise(uncond), 7.5, rescale=0.7, prediction=prediction)(x, t)
    expected = rescale_noise_cfg(torch.tensor(uncond + 7.5 * (cond - uncond)), torch.tensor(cond), 0.7)
    # numpy's std divides by n, torch's by n - 1: the ratio of two of them is the same
    np.testing.assert_allclose(schedule.target(*guided, t, prediction), expected, atol=1e-4)


def test_tables():
    for beta_schedule, schedule in [
        ("linear", schedules.linear()),
        ("scaled_linear", schedules.scaled_linear(start=1e-4, end=0.02)),
        ("squaredcos_cap_v2", schedules.cosine()),
    ]:
        scheduler = diffusers.DDPMScheduler(beta_schedule=beta_schedule)
        ours = schedule.alpha(np.arange(1000)) ** 2
        np.testing.assert_allclose(ours, scheduler.alphas_cumprod, rtol=2e-4, atol=1e-9)
