"""What the training loop costs beside its steps: `python tests/benchmarks/loop.py [--json FILE]`.

loop    milliseconds a step of the shipped diffusion recipe (state, data, logs) whose network is replaced by 100 ms of
        work on one core, and of the same compiled steps in a bare loop over one batch, in turns.
save    milliseconds that the loop stands still for a checkpoint, by its size, and until it is on disk.
"""

import argparse
import dataclasses
import datetime
import importlib.util
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vidjax import settings
from vidjax.evaluation import results
from vidjax.recipes import build as recipe
from vidjax.recipes.config import uncached
from vidjax.runtime import sharding
from vidjax.training.checkpoint import Checkpoints
from vidjax.training.loop import prepare, step_of, train
from vidjax.training.stage import on_device
from vidjax.training.state import TrainState

STEPS, REPEATS = 100, 3
ARRAYS = {"0.08": (20, 2**18), "0.62": (20, 2**21), "3.1": (200, 2**20)}  # GiB of a state: (how many, how long)


def toil(turns: int, x: jax.Array) -> jax.Array:
    """Work on one core, in proportion to `turns`."""
    return jax.lax.fori_loop(0, turns, lambda _, y: jnp.sin(y) + x, x)


def hundred_ms() -> int:
    """How many turns take that long."""
    turns, work = 1_000_000, jax.jit(toil, static_argnums=0)
    work(turns, jnp.ones(())).block_until_ready()
    began = time.perf_counter()
    work(turns, jnp.ones(())).block_until_ready()
    return round(0.1 / (time.perf_counter() - began) * turns)


def loop(config: Any, folder: Path) -> dict[str, Any]:
    turns = hundred_ms()

    def objective(model: Any, batch: Any, draws: Any) -> tuple[jax.Array, dict]:
        still = 0.0 * sum(jnp.sum(p) for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
        return still + toil(turns, batch["video"].reshape(-1)[0].astype(jnp.float32)), {}

    stage = recipe.build(config, "diffusion", folder)
    steps = dataclasses.replace(stage.train, steps=STEPS, save_every=10 * STEPS, validate_every=None, sample_every=None)
    nothing = dict(loaded=lambda *_: {}, validate=None, preview=None, finish=lambda *_: None)
    stage = dataclasses.replace(stage, objective=objective, train=steps, **nothing)
    walls, devices = [], []
    for repeat in range(REPEATS):
        each = dataclasses.replace(stage, folder=folder / str(repeat))
        train(each)
        lines = [json.loads(line) for line in (each.folder / "metrics.jsonl").read_text().splitlines()]
        walls += [1e3 / line["steps_per_second"] for line in lines[1:]]
        devices.append(alone(stage))
    wall, device = statistics.median(walls), statistics.median(devices)
    return {"loop_ms": wall, "bare_ms": device, "overhead": wall / device - 1, "loops": walls, "bare": devices}


def alone(stage: Any) -> float:
    """Milliseconds a step of the same steps, on one batch and with nothing beside."""
    mesh = sharding.make_mesh(**stage.mesh)
    dataset = stage.dataset()
    state, source = prepare(stage, mesh, dataset)
    step = step_of(stage, mesh, state)
    with jax.set_mesh(mesh):
        batch = sharding.put_batch(mesh, on_device(next(source.batches(stage.train.batch_size, 0, 0, 1))))
        state, _ = jax.block_until_ready(step(state, batch))
        began = time.perf_counter()
        for _ in range(STEPS):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
    return 1e3 * (time.perf_counter() - began) / STEPS


def save(count: int, length: int, repeats: int = 3) -> dict[str, float]:
    params = {f"{i}.kernel": jnp.full(length, i, jnp.float32) for i in range(count)}
    moments = tuple(jax.tree.map(jnp.copy, params) for _ in range(2))
    average, waits, ends = jax.tree.map(jnp.copy, params), [], []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder) / "checkpoints") as checkpoints:
        for step in range(1, repeats + 1):
            state = TrainState(jnp.asarray(step, jnp.int32), params, {}, moments, average, None)
            began = time.perf_counter()
            checkpoints.save(state)
            waits.append(1e3 * (time.perf_counter() - began))
            while not (Path(folder) / "checkpoints" / str(step)).exists():
                time.sleep(0.01)
            ends.append(1e3 * (time.perf_counter() - began))
    return {"still_ms": statistics.median(waits), "until_on_disk_ms": statistics.median(ends)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--machine", default="")
    args = parser.parse_args()
    spec = importlib.util.spec_from_file_location("lvdm", Path(__file__).parents[2] / "configs" / "lvdm.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    figures: dict[str, Any] = {"date": datetime.date.today().isoformat(), "machine": args.machine}
    figures |= {"versions": results.versions(), "command": "python tests/benchmarks/loop.py"}
    with tempfile.TemporaryDirectory() as folder:
        figures["loop"] = loop(uncached(settings.checked(module.get_config("clips"))), Path(folder))
    figures["save"] = {f"{size} GiB": save(*arrays) for size, arrays in ARRAYS.items()}
    print(json.dumps({key: figures[key] for key in ("loop", "save")}, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
