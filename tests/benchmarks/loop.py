"""What the training loop costs beside its steps: `python tests/benchmarks/loop.py [--json FILE]`.

loop    milliseconds a step of the shipped diffusion recipe (its data, its logs) where the network is a single number:
        an upper bound of what a step of any length pays, since a device works meanwhile. And the share of 100 ms.
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

from vidjax import recipe, results, settings
from vidjax.checkpoint import Checkpoints
from vidjax.train import train
from vidjax.train_state import TrainState

STEPS = 1000
ARRAYS = {"0.08": (20, 2**18), "0.62": (20, 2**21), "3.1": (200, 2**20)}  # GiB of a state: (how many, how long)


class Number(nnx.Module):
    def __init__(self):
        self.value = nnx.Param(jnp.ones(()))


def objective(model: Number, batch: Any, draws: Any) -> tuple[jax.Array, dict]:
    return jnp.square(model.value[...]) + 0.0 * batch["video"].reshape(-1)[0], {}


def loop(config: Any, folder: Path) -> dict[str, float]:
    stage = recipe.build(config, "diffusion", folder)
    train_ = dict(steps=STEPS, save_every=10 * STEPS, validate_every=None, sample_every=None)
    other = dict(init=lambda rngs: Number(), objective=objective, loaded=lambda *_: {}, validate=None, preview=None)
    trained = dataclasses.replace(stage.train, **train_)
    train(dataclasses.replace(stage, train=trained, finish=lambda *_: None, **other))
    lines = [json.loads(line) for line in (stage.folder / "metrics.jsonl").read_text().splitlines()]
    each = [1e3 / line["steps_per_second"] for line in lines[2:]]
    return {"ms_per_step": statistics.median(each), "share_of_100_ms": statistics.median(each) / 100}


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
        figures["loop"] = loop(recipe.uncached(settings.checked(module.get_config("clips"))), Path(folder))
    figures["save"] = {f"{size} GiB": save(*arrays) for size, arrays in ARRAYS.items()}
    print(json.dumps({key: figures[key] for key in ("loop", "save")}, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
