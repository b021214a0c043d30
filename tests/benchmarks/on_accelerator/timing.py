"""How long kernels, training steps, sampling and decoding take, beside what the compiler and `vidjax.plan` say of them.

Seconds are medians of repeated runs after a first one. `estimate` is read off the very program that is timed. Peak
memory is that of the process: items have one each, and batches grow.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import recipes
from correctness import chosen, runnable
from einops import rearrange
from flax import nnx
from items import attempt
from turns import alone

from vidjax import settings
from vidjax.generation.generator import Generator
from vidjax.generation.options import SampleConfig
from vidjax.models.conditioning import embed
from vidjax.models.kernels import convolution
from vidjax.models.parameters import abstract_parameters, merge
from vidjax.profiling import chips, costs
from vidjax.profiling import layers as profiling
from vidjax.profiling.flops import count_flops
from vidjax.recipes import build as recipe
from vidjax.recipes.config import tunes
from vidjax.recipes.diffusion import process
from vidjax.runtime import compiling, sharding
from vidjax.training.loop import step_of
from vidjax.training.stage import Stage, step_flops, step_flops_by_scope
from vidjax.weights import pretrained

REPEATS, SECONDS = 10, 20  # runs, fewer if they take longer in all
IN_A_ROW = 10  # calls of a kernel, each on what the one before it returned
STEPS = 5  # without waiting for any but the last, as in a training: starting one takes a GPU's host 10 ms and more
PROFILED, LAYERS, DEPTH = 3, 25, 3  # steps in a trace, layers that are listed, parts of their paths
# Attention in the recipes, the batch of frames or pixels being that of one or two clips:
# batch, queries, keys, heads, features of a head.
ATTENDED = {
    "tune 64x64, two frames of keys": (24, 4096, 8192, 8, 40),
    "tune 32x32, two frames of keys": (24, 1024, 2048, 8, 80),
    "tune 16x16, two frames of keys": (24, 256, 512, 8, 160),
    "tune 64x64, 77 tokens": (1, 98304, 77, 8, 40),
    "tune 64x64, over time": (4096, 24, 24, 8, 40),
    "sky 16x16": (32, 256, 256, 4, 128),
    "sky 8x8": (32, 64, 64, 4, 192),
    "lvdm_text 32x32": (32, 1024, 1024, 8, 40),
    "lvdm_text 16x16": (32, 256, 256, 8, 80),
    "lvdm_text 32x32, 77 tokens": (2, 16384, 77, 8, 40),
    "imagen base 24x40": (32, 960, 960, 8, 32),
    "imagen spatial 12x20": (64, 240, 240, 8, 64),
    "vdm 32x32": (32, 1024, 1024, 8, 32),
    "vdm 16x16": (32, 256, 256, 8, 64),
}
SMALL = {"toy": (2, 130, 77, 2, 8)}
# Convolutions in the recipes: input, kernel without its features, features put out, strides, padding's mode.
CONVOLVED: dict[str, tuple] = {
    "sky's encoder, pixels": ((16, 16, 256, 256, 3), (3, 3, 3), 32, (1, 1, 1), "edge"),
    "sky's encoder, first halving": ((16, 16, 256, 256, 32), (4, 4, 4), 64, (2, 2, 2), "edge"),
    "sky's encoder, 128x128": ((16, 8, 128, 128, 64), (3, 3, 3), 64, (1, 1, 1), "edge"),
    "sky's encoder, third halving": ((16, 4, 64, 64, 128), (4, 4, 4), 256, (1, 2, 2), "edge"),
    "ModelScope over time, 32x32": ((2, 16, 32, 32, 320), (3, 1, 1), 320, (1, 1, 1), "zeros"),
    "ModelScope over time, 8x8": ((2, 16, 8, 8, 1280), (3, 1, 1), 1280, (1, 1, 1), "zeros"),
    "Stable Diffusion, 64x64": ((1, 24, 64, 64, 320), (3, 3), 320, (1, 1), "zeros"),
}
SMALL_CONVOLVED: dict[str, tuple] = {"toy": ((1, 4, 6, 6, 3), (3, 3, 3), 4, (1, 1, 1), "edge")}
# Item: (videos at once, guidance, whether a clip is inverted first)
SAMPLED = {"sky_diffusion": ((1, 8), 1.0, False), "lvdm_text": ((1,), 15.0, False), "tune": ((1,), 12.5, True)}


def seconds_of(run: Callable[[], Any], repeats: int = REPEATS, calls: int = 1) -> dict[str, Any]:
    """Of a call of `run`, one of so many of which only the last is waited for; the first, which may compile and be
    paused, apart."""
    first = stopwatch(run)
    with alone():
        taken = [stopwatch(run, calls)]
        while len(taken) < repeats and calls * sum(taken) < SECONDS:
            taken.append(stopwatch(run, calls))
    return {
        "seconds": statistics.median(taken),
        "min": min(taken),
        "max": max(taken),
        "runs": taken,
        "first_seconds": first,
    }


def stopwatch(run: Callable[[], Any], calls: int = 1) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        out = run()
    jax.block_until_ready(out)
    return (time.perf_counter() - began) / calls


def peak_gib() -> dict[str, float]:
    """The most that this process had on a device, where that is counted."""
    stats = jax.devices()[0].memory_stats() or {}
    return {"peak_gib": stats["peak_bytes_in_use"] / chips.GIB} if "peak_bytes_in_use" in stats else {}


def rates(flops: float, seconds: float) -> dict[str, float]:
    """TFLOP/s, and MFU where the peak is known, of all devices."""
    chip = chips.of_device(jax.devices()[0])
    found = {"tflop": flops / 1e12, "tflop_per_second": flops / seconds / 1e12}
    return found | ({"mfu": flops / seconds / chip.flops / jax.device_count()} if chip else {})


def attention(small: bool) -> Iterator[tuple[str, Any]]:
    """Kernels alone in bf16, forward, and forward with backward; "xla" is JAX's own without a library."""
    for name, shape in (SMALL if small else ATTENDED).items():
        yield name, attempt(time_attention, shape)


def time_attention(shape: Sequence[int]) -> dict[str, Any]:
    (b, n, m, heads, d), chip, random = shape, jax.devices()[0], np.random.default_rng(0)
    draw = lambda size: random.standard_normal((b, size, heads * d), np.float32).astype(jnp.bfloat16)
    qkv = jax.device_put((draw(n), draw(m), draw(m)))
    kernels = {**runnable(chip, d, "bfloat16"), "xla": xla}
    if chip.platform == "cpu":
        del kernels["splash"]
    weights = 4 * b * heads * n * m
    if weights > (chip.memory_stats() or {}).get("bytes_limit", 2**33) / 8:  # these keep all of them
        kernels = {name: kernel for name, kernel in kernels.items() if name not in ("plain", "xla")}
    flops = 4.0 * b * heads * n * m * d
    figures: dict[str, Any] = {"shape": dict(b=b, n=n, m=m, heads=heads, head_dim=d)}
    figures["chosen"] = attempt(chosen, chip, qkv, d, None)
    for name, kernel in kernels.items():
        forward = attempt(time_kernel, kernel, qkv, d, flops, False)
        figures[name] = {"forward": forward, "with_gradient": attempt(time_kernel, kernel, qkv, d, 3 * flops, True)}
    return figures


def xla(q: jax.Array, k: jax.Array, v: jax.Array, head_dim: int, mask: Any = None) -> jax.Array:
    q, k, v = (rearrange(a, "b n (k d) -> b n k d", d=head_dim) for a in (q, k, v))
    return rearrange(jax.nn.dot_product_attention(q, k, v, implementation="xla"), "b n k d -> b n (k d)")


def time_kernel(kernel: Callable, qkv: tuple, head_dim: int, flops: float, backward: bool) -> dict[str, float]:
    """One call among `IN_A_ROW`, so that starting them costs nothing; with gradients that includes adding these."""

    def turn(_: Any, qkv: tuple) -> tuple:
        out, pull = jax.vjp(lambda *qkv: kernel(*qkv, head_dim, None), *qkv)
        return jax.tree.map(jnp.add, qkv, pull(out)) if backward else (out, *qkv[1:])

    with jax.set_mesh(sharding.make_mesh(devices=[jax.devices()[0]])):
        run = compiling.jit(lambda qkv: jax.lax.fori_loop(0, IN_A_ROW, turn, qkv))
        found = seconds_of(lambda: run(qkv))
    seconds = found["seconds"] / IN_A_ROW
    return {"ms": 1e3 * seconds, "min_ms": 1e3 * found["min"] / IN_A_ROW, "tflop_per_second": flops / seconds / 1e12}


def convolutions(small: bool) -> Iterator[tuple[str, Any]]:
    """Forms of convolutions alone in bf16, forward, and forward with backward."""
    for name, shape in (SMALL_CONVOLVED if small else CONVOLVED).items():
        yield name, attempt(time_convolution, *shape)


def time_convolution(
    size: Sequence[int], kernel: Sequence[int], features: int, strides: Sequence[int], mode: str
) -> dict[str, Any]:
    random = np.random.default_rng(0)
    draw = lambda *size: random.standard_normal(size, np.float32).astype(jnp.bfloat16)
    given = jax.device_put((draw(*size), draw(*kernel, size[-1], features)))
    padding = [((k - s + 1) // 2, (k - s) // 2) for k, s in zip(kernel, strides)]
    figures: dict[str, Any] = {"chosen": convolution.choose_convolution()}
    for name in convolution.CONVOLUTIONS:

        def run(x: jax.Array, kernel: jax.Array, name: str = name) -> jax.Array:
            return convolution.convolve(x, kernel, strides, padding, mode, implementation=name)

        def run_and_pull(x: jax.Array, kernel: jax.Array, run: Callable = run) -> Any:
            out, pull = jax.vjp(run, x, kernel)
            return out, pull(out)

        figures[name] = {
            "forward": attempt(time_calls, run, given),
            "with_gradient": attempt(time_calls, run_and_pull, given),
        }
    return figures


def time_calls(function: Callable, given: tuple) -> dict[str, float]:
    with jax.set_mesh(sharding.make_mesh(devices=[jax.devices()[0]])):
        program = compiling.jit(function).lower(*given).compile()
    found = seconds_of(lambda: program(*given), calls=IN_A_ROW)
    gib = program.memory_analysis().temp_size_in_bytes / chips.GIB
    return {"ms": 1e3 * found["seconds"], "min_ms": 1e3 * found["min"], "temporary_gib": gib}


def steps(name: str, *, small: bool) -> Iterator[tuple[str, Any]]:
    """Training steps at growing batches, until one does not fit."""
    with tempfile.TemporaryDirectory() as folder:
        config, stage, batches = recipes.build(name, small, Path(folder))
        for size in batches:
            own = recipes.at_batch(stage, size * jax.device_count())
            traces = Path(folder) / f"traces-{size}"
            found = attempt(time_steps, own, config, traces)
            yield f"{size} per device", found
            if "error" in found:
                return


def time_steps(stage: Stage, config: dict[str, Any], traces: Path) -> dict[str, Any]:
    shapes = recipe.example_batch(config, stage)
    flops, mesh = step_flops(stage, shapes), sharding.make_mesh(**stage.mesh)
    state = recipes.draw_state(stage, mesh)
    batch = sharding.put_batch(mesh, recipes.draw_batch(shapes))
    own = dataclasses.replace(stage, objective=profiling.named(stage.objective))
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = step_of(own, mesh, state).lower(state, batch)
        program = compiled = lowered.compile()
    figures: dict[str, Any] = {"compile_seconds": time.perf_counter() - began, "batch_size": stage.train.batch_size}

    def step() -> Any:
        nonlocal state
        state, metrics = program(state, batch)
        return metrics

    figures |= seconds_of(step, calls=STEPS)
    figures |= rates(flops, figures["seconds"]) | peak_gib() | {"loss": float(step()["loss"])}
    figures["estimate"] = attempt(estimate, stage, compiled, flops)
    with jax.set_mesh(mesh):
        program = profiling.compile_to_trace(lowered, compiled)
    figures["traced"] = seconds_of(step, calls=STEPS)
    figures["layers"] = attempt(profile, own, program, step, shapes, traces)
    return figures


def estimate(stage: Stage, compiled: Any, flops: float) -> dict[str, Any]:
    """What `vidjax.plan` would say, from the compiled program alone; on several devices what travels is left out."""
    found: dict[str, Any] = {"total_gib": compiled.memory_analysis().peak_memory_in_bytes / chips.GIB}
    chip = chips.of_device(jax.devices()[0])
    if chip is None:
        return found
    seconds, dear = costs.durations(compiled.as_text(), chip, flops / jax.device_count(), True)
    paths = {path for path, _ in profiling.layers(stage.abstract())}
    found |= {"seconds": seconds, "mfu": flops / jax.device_count() / chip.flops / seconds}
    return found | {"most_expensive": costs.most_expensive(dear, paths)}


def profile(stage: Stage, compiled: Any, step: Callable[[], Any], shapes: Any, traces: Path) -> dict[str, Any]:
    """Milliseconds, FLOPs and bytes by layer, the slowest first."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with alone(), jax.profiler.trace(str(traces), profiler_options=options):
        for _ in range(PROFILED):
            jax.block_until_ready(step())
    flops, spans = step_flops_by_scope(stage, shapes), profiling.read_trace(traces)
    paths = [path for path, _ in profiling.layers(stage.abstract())]
    rows = profiling.table(flops, compiled.as_text(), spans, PROFILED, paths, DEPTH)
    return dict(list(rows.items())[:LAYERS])


def sampling(name: str, *, small: bool) -> Iterator[tuple[str, Any]]:
    """Fifty DDIM steps (and inversion, where edits start from a clip), then decoding, in bf16."""
    counts, guidance, inverts = SAMPLED[name]
    number = 2 if small else 50
    with tempfile.TemporaryDirectory() as folder:
        config, stage, _ = recipes.build(name, small, Path(folder))
        generator = make_generator(config, stage)
    for count in counts[:1] if small else counts:
        prompts: Sequence[str | int] = ["a fox"] * count if stage.tokenize else [-1] * count
        figures: dict[str, Any] = {"steps": number, "guidance": guidance}
        for part, found in sample_in_parts(generator, prompts, number, guidance, inverts):
            figures[part] = found
            yield f"{count} at once", figures


def sample_in_parts(
    generator: Generator, prompts: Sequence[str | int], number: int, guidance: float, inverts: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    options: dict[str, Any] = dict(num_steps=number, guidance_scale=guidance, sampler="ddim")
    flops = attempt(call_flops, generator, prompts)

    def measure(run: Callable[[], Any], calls: int = 0) -> dict[str, Any]:
        found = seconds_of(run, repeats=3)
        known = calls and isinstance(flops, float)
        return found | peak_gib() | (rates(calls * flops, found["seconds"]) if known else {})

    yield "call", {"tflop": flops / 1e12} if isinstance(flops, float) else flops
    yield "sampling", measure(lambda: generator.latents(prompts, **options), number * (2 if guidance != 1 else 1))
    latents = generator.latents(prompts, **options)
    yield "decoding", measure(lambda: generator.decode(latents))
    if inverts:
        yield "inversion", measure(lambda: generator.invert(latents, prompts, num_steps=number), number)


def make_generator(config: dict[str, Any], stage: Stage) -> Generator:
    """Of a stage's model with random parameters in bf16, on the device."""
    section = settings.stage_settings(config, stage.name)
    size = (stage.data.frames, *stage.data.hw)
    if tunes(section):
        model, known = stage.start(False)[0], pretrained.load(section["pretrained"], weights=False)
        schedule, prediction = known.schedule, known.prediction
    else:
        model, (schedule, prediction) = stage.abstract(), process(section)
    params = recipes.fill(abstract_parameters(model), jnp.bfloat16)
    params = {path: jnp.asarray(value) for path, value in params.items()}
    return Generator(nnx.graphdef(model), params, schedule, prediction, stage.tokenize, size, 3, SampleConfig())


def call_flops(generator: Generator, prompts: Sequence[str | int]) -> float:
    """Of the network, asked once."""
    x = jax.ShapeDtypeStruct((len(prompts), *generator.latent_shape()), jnp.float32)
    batch, t = generator.conditions(prompts), jnp.ones(x.shape[:2])

    def call(params: Any, x: jax.Array) -> Any:
        model = merge(generator.network.graphdef, params)
        return model.denoiser(generator.schedule, generator.prediction, embed(model.embedders, batch))(x, t)

    return count_flops(call, generator.params, x)
