"""What a recipe costs on this machine: `python -m vidjax.benchmark --config=configs/lvdm.py --steps 10 --json FILE`.

FLOPs are those of matrix products and convolutions in the loss and its gradient: what is frozen costs no more than it
must. Work done again under rematerialisation is not counted, so MFU is comparable between policies.

`--layers 3` says which layers (the first three parts of their paths) do how much of it, how long they take and by which
kernel they attend; `--trace FOLDER` keeps the trace from which the times are, to be opened in TensorBoard's profiler or
Perfetto.
"""

import dataclasses
import math
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from absl import flags

from vidjax import cli
from vidjax.errors import InputError
from vidjax.models.parameters import abstract_parameters
from vidjax.profiling import layers as profiling
from vidjax.recipes import build as recipe
from vidjax.recipes.config import stage_names, uncached
from vidjax.runtime import sharding
from vidjax.runtime.outputs import open_file, open_folder
from vidjax.runtime.storage import write_json
from vidjax.training.stage import Stage, abstract_loss, on_device, step_flops, step_flops_by_scope
from vidjax.training.telemetry import peak_flops

CONFIG = cli.define_recipe_flag()
STEPS = flags.DEFINE_integer(
    "steps", 10, "Timed steps of every stage; 0: count parameters and FLOPs only.", lower_bound=0
)
STAGE = flags.DEFINE_string("stage", None, "Only this stage.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "In place of the recipe's.", lower_bound=1)
LAYERS = flags.DEFINE_integer(
    "layers", None, "A table of layers, named by so many parts of their paths.", lower_bound=1
)
TRACE = flags.DEFINE_string("trace", None, "Keep a trace of the timed steps in this folder.")
JSON = flags.DEFINE_string("json", None, "Write the figures to this file.")


def main() -> None:
    """Counts and times the stages of --config."""
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)  # layers' names are metadata
    config = uncached(CONFIG())
    if (LAYERS.value or TRACE.value) and not STEPS.value:
        raise InputError("--steps=0 runs nothing to be profiled: leave out --layers and --trace")
    file = JSON.value and open_file(JSON.value, "--json")
    if TRACE.value:
        open_folder(TRACE.value, "--trace", disk=True)
    figures: dict[str, Any] = {"device": f"{jax.device_count()} x {jax.devices()[0].device_kind}", "stages": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in [STAGE.value] if STAGE.value else stage_names(config):
            stage = recipe.largest(recipe.build(config, name, Path(folder)))
            if BATCH_SIZE.value:
                train = dataclasses.replace(stage.train, batch_size=BATCH_SIZE.value, accumulate=1)
                stage = dataclasses.replace(stage, train=train)
            found = abstract(stage, config)
            if STEPS.value:
                traces = Path(TRACE.value or folder) / name
                found |= timed(stage, traces)
                found |= rates(found)
            figures["stages"][name] = found
            show(name, found)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, figures)


def abstract(stage: Stage, config: Any) -> dict[str, float]:
    """Counts the parameters that train, and FLOPs per step; runs nothing, the data need not be there."""
    batch = recipe.example_batch(config, stage)
    _, state = abstract_loss(stage)
    trained = [v for path, v in abstract_parameters(state).items() if stage.trainable(path)]
    return {
        "parameters": sum(math.prod(v.shape) for v in trained),
        "batch_size": stage.train.batch_size,
        "tflop_per_step": step_flops(stage, batch) / 1e12,
    }


def timed(stage: Stage, traces: Path) -> dict[str, Any]:
    """Measures compilation, the median step, memory, the data by themselves, and the layers if asked for."""
    from vidjax.training.loop import prepare, step_of

    mesh = sharding.make_mesh(**stage.mesh)
    dataset = stage.dataset()
    stage = dataclasses.replace(stage, loaded=lambda state, dataset: {}, objective=profiling.named(stage.objective))
    state, source = prepare(stage, mesh, dataset)
    batches = source.batches(stage.train.batch_size)
    batch = sharding.put_batch(mesh, on_device(next(batches)))
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = step_of(stage, mesh, state).lower(state, batch)
        program = compiled = lowered.compile()
    figures: dict[str, Any] = {"compile_seconds": time.perf_counter() - began}

    def steps(count: int) -> list[float]:
        nonlocal state
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            state, metrics = program(state, batch)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - began)
        return seconds

    steps(1)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    figures["step_seconds"] = statistics.median(steps(STEPS.value))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    figures["page_faults_per_step"] = faults / STEPS.value
    began = time.perf_counter()
    for _ in range(STEPS.value):
        next(batches)
    figures["data_clips_per_second"] = STEPS.value * stage.train.batch_size / (time.perf_counter() - began)
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    figures["peak_memory_gb"] = peak / 2**30
    if LAYERS.value or TRACE.value:
        with jax.set_mesh(mesh):
            program = profiling.compile_to_trace(lowered, compiled)
        steps(1)
        with jax.profiler.trace(str(traces), profiler_options=without_python()):
            figures["traced_step_seconds"] = statistics.median(steps(STEPS.value))
    if LAYERS.value:
        flops = step_flops_by_scope(stage, batch)
        paths = [path for path, _ in profiling.layers(stage.abstract())]
        spans = profiling.read_trace(traces)
        figures["layers"] = profiling.table(flops, program.as_text(), spans, STEPS.value, paths, LAYERS.value)
        figures["attention"] = profiling.attention_of(compiled.as_text(), paths, LAYERS.value)
    return figures


def without_python() -> jax.profiler.ProfileOptions:
    """Returns options of a trace without calls of Python functions, which would fill it."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options


def show(name: str, figures: dict[str, Any]) -> None:
    """Prints the figures of a stage, and the table of its layers if there is one."""
    print(name, *(f"{key} {value:,.6g}" for key, value in figures.items() if not isinstance(value, dict)), sep="\n  ")
    if rows := figures.get("layers"):
        width, attention = max(map(len, rows)), figures["attention"]
        print(f"  {'layer':{width}}  share      ms   GFLOP      GB  attention")
        for layer, row in ((layer, row) for layer, row in rows.items() if row["share"] >= 5e-4):
            numbers = f"{row['share']:6.1%} {row['ms']:7.1f} {row['gflop']:7.1f} {row['gb']:7.2f}"
            print(f"  {layer:{width}} {numbers}  {attention.get(layer, '')}".rstrip())
        whole = sum(row["ms"] for row in rows.values()) / 1e3
        print(
            f"  layers add up to {whole:.3g} s, of steps that took {figures['traced_step_seconds']:.3g} s under the "
            f"profiler, which slows down what it watches; step_seconds ({figures['step_seconds']:.3g} s) is without it"
        )


def rates(figures: dict[str, float]) -> dict[str, float]:
    """Computes TFLOP/s, and MFU where the device's peak is known."""
    achieved = figures["tflop_per_step"] / figures["step_seconds"]
    peak = peak_flops()
    return {"tflop_per_second": achieved, **({"mfu": achieved * 1e12 / peak} if peak else {})}


if __name__ == "__main__":
    cli.start(main)
