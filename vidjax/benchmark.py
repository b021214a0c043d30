"""What a recipe costs on this machine: `python -m vidjax.benchmark --config=configs/lvdm.py --steps 10 --json FILE`.

FLOPs are those of matrix products and convolutions in the loss and its gradient: what is frozen costs no more than it
must. Work done again under rematerialisation is not counted, so MFU is comparable between policies.
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
from ml_collections import config_flags

from vidjax import cli, recipe, settings, sharding
from vidjax.errors import InputError
from vidjax.stage import Stage, abstract_loss, on_device, step_flops
from vidjax.telemetry import peak_flops
from vidjax.train_state import abstract_parameters
from vidjax.train_step import make_train_step

CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe and its variant.")
STEPS = flags.DEFINE_integer(
    "steps", 10, "Timed steps of every stage; 0: count parameters and FLOPs only.", lower_bound=0
)
STAGE = flags.DEFINE_string("stage", None, "Only this stage.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "In place of the recipe's.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "Write the figures to this file.")


def main() -> None:
    if CONFIG.value is None:
        raise InputError("--config is missing: name a recipe, such as --config=configs/lvdm.py")
    config = recipe.uncached(settings.checked(CONFIG.value))
    figures: dict[str, Any] = {"device": f"{jax.device_count()} x {jax.devices()[0].device_kind}", "stages": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in [STAGE.value] if STAGE.value else recipe.stage_names(config):
            stage = recipe.build(config, name, Path(folder))
            if BATCH_SIZE.value:
                train = dataclasses.replace(stage.train, batch_size=BATCH_SIZE.value, accumulate=1)
                stage = dataclasses.replace(stage, train=train)
            found = abstract(stage, config)
            if STEPS.value:
                found |= timed(stage)
                found |= rates(found)
            figures["stages"][name] = found
            print(name, *(f"{key} {value:,.6g}" for key, value in found.items()), sep="\n  ")
    if JSON.value:
        settings.write_json(JSON.value, figures)


def abstract(stage: Stage, config: Any) -> dict[str, float]:
    """Parameters that train, and FLOPs a step, without running anything: the data need not be there."""
    batch = recipe.example_batch(config, stage)
    _, state = abstract_loss(stage)
    trained = [v for path, v in abstract_parameters(state).items() if stage.trainable(path)]
    return {
        "parameters": sum(math.prod(v.shape) for v in trained),
        "batch_size": stage.train.batch_size,
        "tflop_per_step": step_flops(stage, batch) / 1e12,
    }


def timed(stage: Stage) -> dict[str, float]:
    """Compilation, the median step, memory, and how fast the data come by themselves."""
    from vidjax.train import prepare

    mesh = sharding.make_mesh(**stage.mesh)
    dataset = stage.dataset()
    stage = dataclasses.replace(stage, loaded=lambda state, dataset: {})
    state, source = prepare(stage, mesh, dataset)
    options = stage.train
    step = make_train_step(
        stage.objective, stage.optimizer, 0, ema=options.ema, accumulate=options.accumulate, dtype=options.dtype
    )
    batches = source.batches(options.batch_size)
    batch = sharding.put_batch(mesh, on_device(next(batches)))
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    figures = {"compile_seconds": time.perf_counter() - began}
    seconds = []
    for _ in range(STEPS.value + 1):
        began = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    figures["step_seconds"] = statistics.median(seconds[1:])
    began = time.perf_counter()
    for _ in range(STEPS.value):
        next(batches)
    figures["data_clips_per_second"] = STEPS.value * options.batch_size / (time.perf_counter() - began)
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    figures["peak_memory_gb"] = peak / 2**30
    return figures


def rates(figures: dict[str, float]) -> dict[str, float]:
    """TFLOP/s, and MFU where the device's peak is known."""
    achieved = figures["tflop_per_step"] / figures["step_seconds"]
    peak = peak_flops()
    return {"tflop_per_second": achieved, **({"mfu": achieved * 1e12 / peak} if peak else {})}


if __name__ == "__main__":
    cli.start(main)
