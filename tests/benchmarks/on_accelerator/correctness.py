"""The same numbers on the accelerator and on the host's CPU, in one process.

An error is |a - b| / |b| over all elements; `b` is the CPU's in fp32. What is fp32 on the accelerator multiplies in
fp32, too ("highest"). Of bf16 networks the CPU's own error is written beside: that of rounding alone.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from flax import nnx
from items import attempt

from vidjax import settings
from vidjax.diffusion.guidance import classifier_free
from vidjax.diffusion.samplers import ddim, sample
from vidjax.models.autoencoder import LVDM, STABLE_DIFFUSION, Autoencoder
from vidjax.models.conditioning import embed, nulls
from vidjax.models.kernels.attention import ATTENTION, choose_attention, widest
from vidjax.models.parameters import Params, abstract_parameters, cast, merge
from vidjax.models.unet import UNet, UNetConfig
from vidjax.recipes import build as recipe
from vidjax.recipes.diffusion import process
from vidjax.runtime import compiling, sharding
from vidjax.training.loop import prepare, step_of
from vidjax.training.stage import Stage, on_device

TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
ROUNDING = 1.5  # a bf16 network may err so many times as much as the CPU in bf16
PARAMETERS = 1e-2  # after steps of Adam, which makes noise of gradients that are nothing but noise
# batch, queries, keys, heads, features of a head, masked keys
ATTENDED = {
    **{f"width {d}": (2, 256, 256, 2, d, False) for d in (40, 64, 80, 128, 160, 256)},
    "77 keys, width 40": (2, 1024, 77, 8, 40, False),
    "77 keys, width 160": (2, 256, 77, 8, 160, False),
    "77 keys, masked": (2, 1024, 77, 4, 64, True),
    "256 keys, masked": (2, 256, 256, 4, 64, True),
    "odd lengths": (2, 333, 335, 2, 64, False),
    "odd lengths, width 40": (3, 129, 77, 8, 40, False),
    "two frames of keys": (2, 1024, 2048, 2, 80, False),
    "short, side by side": (64, 24, 24, 8, 40, False),
    "very short": (256, 4, 4, 4, 128, False),
}
SMALL = {"masked": (2, 130, 77, 2, 8, True)}


def compute(device: Any, function: Callable, *args: Any, precision: str = "highest") -> Any:
    """`function(*args)` on one device, compiled for it; NumPy in and out."""
    mesh = sharding.make_mesh(devices=[device])
    with jax.set_mesh(mesh), jax.default_matmul_precision(precision):
        on = jax.device_put(args, sharding.replicated(mesh))
        return jax.tree.map(np.asarray, compiling.jit(function)(*on))


def relative_error(got: Any, wanted: Any) -> float:
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(*map(jax.tree.leaves, (got, wanted)))
    ]
    apart = sum(np.square(a - b).sum() for a, b in pairs) ** 0.5
    return float(apart / sum(np.square(b).sum() for _, b in pairs) ** 0.5)


def judge(errors: dict[str, float], tolerance: float, own: dict[str, float] | None = None) -> dict[str, Any]:
    """The errors and whether all are within the tolerance, or `ROUNDING` times the CPU's `own` where that is more; one
    that is not a number is not."""
    most = {key: max(tolerance, ROUNDING * own[key]) if own else tolerance for key in errors}
    passed = all(error <= most[key] for key, error in errors.items())
    return {**errors, "tolerance": most if own else tolerance, "passed": passed}


def forward_and_backward(function: Callable) -> Callable:
    """`(differentiated, cotangent, *rest) -> (value, gradient)` of `function(differentiated, *rest)`."""

    def both(args: Any, cotangent: Any, *rest: Any) -> tuple[Any, Any]:
        value, pull = jax.vjp(lambda args: function(args, *rest), args)
        return value, pull(cotangent.astype(value.dtype))[0]

    return both


def attention(small: bool) -> Iterator[tuple[str, Any]]:
    """Each implementation that the device has, for fp32 and bf16."""
    for name, shape in (SMALL if small else ATTENDED).items():
        figures: dict[str, Any] = {"shape": dict(zip(("b", "n", "m", "heads", "head_dim", "masked"), shape))}
        for dtype in TOLERANCE:
            figures[dtype] = attempt(check_attention, shape, dtype)
        yield name, figures


def check_attention(shape: Sequence[Any], dtype: str) -> dict[str, Any]:
    chip, host, head_dim = jax.devices()[0], jax.devices("cpu")[0], shape[4]
    qkv, cotangent, mask = draw_attention(shape, dtype)

    def run(device: Any, kernel: Callable, dtype: str) -> tuple[Any, Any]:
        both = forward_and_backward(lambda qkv, mask: kernel(*qkv, head_dim, mask))
        precision = "highest" if dtype == "float32" else "default"
        return compute(device, both, cast(qkv, jnp.dtype(dtype)), cotangent, mask, precision=precision)

    def compare(kernel: Callable) -> dict[str, Any]:
        errors = map(relative_error, run(chip, kernel, dtype), wanted)
        return judge(dict(zip(("forward", "gradient"), errors)), TOLERANCE[dtype])

    wanted = run(host, ATTENTION["plain"], "float32")
    kernels = runnable(chip, head_dim, dtype)
    found = {name: attempt(compare, kernel) for name, kernel in kernels.items()}
    return {"chosen": attempt(chosen, chip, qkv, head_dim, mask), **found}


def draw_attention(shape: Sequence[Any], dtype: str) -> tuple[tuple, Any, Any]:
    """((q, k, v), a cotangent, a mask or None), rounded to the dtype; the second example's mask leaves no key."""
    b, n, m, heads, d, masked = shape
    random = np.random.default_rng(0)
    draw = lambda size: random.standard_normal((b, size, heads * d), np.float32).astype(jnp.dtype(dtype))
    mask = None
    if masked:
        mask = random.random((b, 1, 1, m)) < 0.7
        mask[1] = False
    return (draw(n), draw(m), draw(m)), draw(n).astype(np.float32), mask


def chosen(device: Any, qkv: tuple, head_dim: int, mask: Any) -> str:
    """Which implementation layers take there."""
    names = []
    with jax.set_mesh(sharding.make_mesh(devices=[device])):
        jax.eval_shape(lambda q, k, v: names.append(choose_attention(q, k, head_dim, mask)), *qkv)
    return names[0]


def runnable(device: Any, head_dim: int, dtype: str) -> dict[str, Callable]:
    """The entries of `ATTENTION` that a device runs at this width and dtype; a CPU interprets the TPU's."""
    names = ["plain", "chunked"]
    if device.platform == "tpu":
        names.append("splash")
    if (
        device.platform == "gpu"
        and dtype == "bfloat16"
        and head_dim % 8 == 0
        and head_dim <= widest(device.device_kind)
    ):
        names.append("cudnn")
    found = {name: ATTENTION[name] for name in names}
    if device.platform == "cpu":
        found["splash"] = lambda *args: ATTENTION["splash"](*args, interpret=True)
    return found


def draw_parameters(shapes: Params, seed: int = 0) -> Params:
    """Random parameters, none of them zero, that keep the size of what passes through them."""
    random, found = np.random.default_rng(seed), {}
    for path, shape in shapes.items():
        noise = random.standard_normal(shape.shape, np.float32)
        fan_in = np.prod(shape.shape[:-1]) if len(shape.shape) > 1 else 100
        found[path] = 1 + 0.1 * noise if path.endswith("scale") else noise * np.float32(fan_in**-0.5)
    return found


def networks(small: bool) -> Iterator[tuple[str, Any]]:
    """A U-Net with every kind of attention, and both autoencoders: forward and backward, fp32 and bf16."""
    random = np.random.default_rng(1)
    draw = lambda *shape: random.standard_normal(shape, np.float32)
    side = 8 if small else 16
    block = (("attn1", "first_and_previous"), ("attn2", "tokens"))
    over_time: dict[str, Any] = {}
    if not small:
        block = (*block, ("attn3", "time"), ("attn_temp", "relative_time"), ("ff", "ff"))
        over_time = dict(norm_over="clip", after_resnet="convs", reach=4)
    levels: dict[str, Any] = dict(channels=(128, 256), blocks_per_level=1, attention_levels=True, heads=2, groups=8)
    if small:
        levels |= dict(channels=(16,), blocks_per_level=0)
    unet = UNetConfig(block=block, tokens_dim=32, **levels, **over_time)
    tokens = draw(2, 77, 32)
    call = lambda model, x, tokens: model(x, jnp.full(x.shape[:2], 501.0), tokens)
    make = lambda: UNet(unet, rngs=nnx.Rngs(0))
    yield "unet", attempt(check_network, make, call, draw(2, 4, side, side, 4), tokens)
    if small:
        return
    through = lambda model, x: model.decode(model.encode(x).mode)
    narrow = dict(channels=(32, 32, 64, 64), groups=8)
    configs = {
        "autoencoder_lvdm": dataclasses.replace(LVDM, **narrow, decoder_channels=(32, 32, 32, 4)),
        "autoencoder_stable_diffusion": dataclasses.replace(STABLE_DIFFUSION, **narrow),
    }
    for name, config in configs.items():
        coder = lambda config=config: Autoencoder(config, rngs=nnx.Rngs(0))
        yield name, attempt(check_network, coder, through, draw(1, 4, 64, 64, 3))


def check_network(make: Callable[[], Any], call: Callable, x: np.ndarray, *rest: np.ndarray) -> dict[str, Any]:
    chip, host = jax.devices()[0], jax.devices("cpu")[0]
    model = nnx.eval_shape(make)
    graphdef, params = nnx.graphdef(model), draw_parameters(abstract_parameters(model))
    both = forward_and_backward(lambda args, *rest: call(merge(graphdef, args[0]), args[1], *rest))

    def run(device: Any, dtype: str) -> tuple[Any, Any]:
        args, others = cast(((params, x), rest), jnp.dtype(dtype))
        cotangent = np.random.default_rng(2).standard_normal(out.shape, np.float32)
        return compute(device, both, args, cotangent, *others, precision="highest" if dtype == "float32" else "default")

    out = jax.eval_shape(lambda params, x, *rest: call(merge(graphdef, params), x, *rest), params, x, *rest)
    wanted = run(host, "float32")
    errors = lambda got: dict(zip(("forward", "gradient"), map(relative_error, got, wanted)))
    found: dict[str, Any] = {"float32": attempt(lambda: judge(errors(run(chip, "float32")), TOLERANCE["float32"]))}

    def half() -> dict[str, Any]:
        own = errors(run(host, "bfloat16"))
        return {**judge(errors(run(chip, "bfloat16")), TOLERANCE["bfloat16"], own), "cpu": own}

    return {**found, "bfloat16": attempt(half)}


def tiny_stage(variant: str, name: str, folder: Path) -> tuple[dict[str, Any], Stage]:
    """A stage of tests/tiny.py that starts at random, whatever it would load; that of pixels without attention."""
    config = settings.checked(tiny.get_config(variant))
    if variant == "pixels":
        config["model"]["attention_levels"] = (False,)
    stage = recipe.build(config, name, folder)
    return config, dataclasses.replace(stage, loaded=lambda state, dataset: {})


def training(small: bool) -> Iterator[tuple[str, Any]]:
    """Three training steps of tests/tiny.py: losses, norms of gradients, parameters; also over all chips of a host."""
    wanted = [("pixels", "diffusion")] if small else [("latent", "autoencoder"), ("latent", "diffusion")]
    with tempfile.TemporaryDirectory() as folder:
        for variant, name in wanted:
            _, stage = tiny_stage(variant, name, Path(folder))
            host = three_steps(stage, jax.devices("cpu")[:1])
            rows = {"one device": jax.devices()[:1]}
            if jax.device_count() > 1:
                rows["all devices"] = jax.devices()

            def compare(devices: Sequence[Any], stage=stage, host=host) -> dict[str, Any]:
                metrics, params = three_steps(stage, devices, host[2])[:2]
                names = ("loss", "grad_norm")
                found = judge({key: relative_error(metrics[key], host[0][key]) for key in names}, TOLERANCE["float32"])
                apart = judge({"parameters": relative_error(params, host[1])}, PARAMETERS)
                return {**found, "parameters": apart, "losses": metrics["loss"]}

            yield f"{variant} {name}", {row: attempt(compare, devices) for row, devices in rows.items()}


def three_steps(stage: Stage, devices: Sequence[Any], start: Any = None) -> tuple[dict[str, list[float]], Any, Any]:
    """(metrics of each step, parameters after the last, the state before the first), from `start` if it is given: the
    random numbers of a fresh state are not the same everywhere."""
    mesh = sharding.make_mesh(**stage.mesh, devices=devices)
    dataset = stage.dataset()
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        if start is None:
            start = jax.tree.map(np.asarray, prepare(stage, mesh, dataset)[0])
        state = jax.device_put(start, sharding.tree_sharding(mesh, start))
        step, steps = step_of(stage, mesh, state), []
        for batch, _ in zip(dataset.batches(stage.train.batch_size), range(3)):
            state, metrics = step(state, sharding.put_batch(mesh, on_device(batch)))
            steps.append(metrics)
    metrics = {key: [float(each[key]) for each in steps] for key in ("loss", "grad_norm")}
    return metrics, jax.tree.map(np.asarray, state.params), start


def sampling(small: bool) -> Iterator[tuple[str, Any]]:
    """Eight DDIM steps with guidance, then decoding, in fp32."""
    with tempfile.TemporaryDirectory() as folder:
        config, stage = tiny_stage("pixels" if small else "latent", "diffusion", Path(folder))
    schedule, prediction = process(settings.stage_settings(config, "diffusion"))
    model = stage.abstract()
    graphdef, params = nnx.graphdef(model), draw_parameters(abstract_parameters(model))
    count = 2
    batch = {"label": np.arange(count)}
    if stage.tokenize:
        batch["tokens"] = np.stack([stage.tokenize(text) for text in ("a fox", "a tower")])
    shape = jax.eval_shape(
        lambda params, video: merge(graphdef, params).latents(video),
        params,
        recipe.example_batch(config, stage)["video"],
    ).shape
    noise = np.random.default_rng(3).standard_normal((count, *shape[1:]), np.float32)
    times = np.asarray(schedule.timesteps(8), np.float32)

    def run(params: Params, batch: dict[str, Any], noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = merge(graphdef, params)
        under = lambda batch: model.denoiser(schedule, prediction, embed(model.embedders, batch))
        away = {**batch, **nulls(model.embedders, batch)}
        denoise = classifier_free(schedule, under(batch), under(away), 2.0, prediction=prediction)
        start = noise * schedule.std(times[0])
        z = sample(denoise, schedule, start, times, 8, ddim(), jax.random.key(0))
        return z, model.pixels(z)

    chip, host = (compute(d, run, params, batch, noise) for d in (jax.devices()[0], jax.devices("cpu")[0]))
    yield "eight DDIM steps", judge(dict(zip(("latents", "pixels"), map(relative_error, chip, host))), 1e-3)
