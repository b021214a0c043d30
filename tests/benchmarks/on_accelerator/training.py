"""The default recipe for some minutes, as a user runs it: `vidjax.main` with more steps."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from processes import describe_end, run_process
from record import Record
from turns import alone

ROOT = Path(__file__).parents[3]
# (recipe, what part of the minutes each stage gets)
RECIPE = (ROOT / "configs" / "lvdm.py", "clips", {"autoencoder": 0.2, "diffusion": 0.8})
TOY = (ROOT / "tests" / "tiny.py", "pixels", {"diffusion": 1.0})
MEASURED, LINES = 300, 60  # steps that tell the rate; lines of metrics that are kept
FEWEST = 3  # steps of a stage
LATE = 10  # minutes, and twice those asked for, after which a run is stopped


def rates(small: bool) -> Iterator[tuple[str, Any]]:
    """Steps per second of each stage with its data, once compiled."""
    import runpy

    from vidjax import settings
    from vidjax.recipes import build as recipe
    from vidjax.training.loop import train

    file, variant, shares = TOY if small else RECIPE
    config = runpy.run_path(str(file))["get_config"](variant)
    for name in shares:
        config.stages[name].train.update(steps=FEWEST if small else MEASURED, log_every=1 if small else MEASURED // 3)
        config.stages[name].train.update(validate_every=None, sample_every=None)
    config = settings.checked(config)
    found = {}
    with alone(), tempfile.TemporaryDirectory() as folder:  # a training compiles on its way
        for name in shares:
            train(recipe.build(config, name, Path(folder)))
            last = read_metrics(Path(folder) / name)[-1]
            kept = ("step", "steps_per_second", "input_wait", "mfu")
            found[name] = {key: last[key] for key in kept if key in last}
    yield from found.items()


def run(
    record: Record,
    start: Mapping[str, str],
    minutes: float,
    small: bool,
    folder: Path,
    environment: Mapping[str, str],
) -> None:
    """Trains, and records figures of the stages, what the run says of itself, and how it ended."""
    put = lambda key, value: record.put(["training", key], value)
    workdir, measured = folder / "run", record.get("training", "rates")
    record.put(["training"], {**start, "rates": measured})
    file, variant, shares = TOY if small else RECIPE
    command = [f"--config={file}:{variant}", f"--workdir={workdir}"]
    for name, share in shares.items():
        if "steps_per_second" not in measured.get(name, {}):
            return put("error", f"the rate of stage {name} is not known: see training/rates")
        steps = max(round(60 * minutes * share * measured[name]["steps_per_second"]), FEWEST)
        every = {"log_every": steps // LINES, "save_every": max(steps // 4, FEWEST)}
        if not small and name == "diffusion":
            every |= {"sample_every": steps // 2, "validate_every": steps // 4}
        settings = {"steps": steps, **every}
        command += [f"--config.stages.{name}.train.{key}={max(value, 1)}" for key, value in settings.items()]
    shown = [argument.replace(f"{ROOT}/", "").replace(str(workdir), "WORKDIR") for argument in command]
    put("program", " ".join(["python -m vidjax.main", *shown]))
    print(f"training: {record.get('training', 'program')}", flush=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "vidjax.main", *command]
    status, tail = run_process(command, 60 * (2 * minutes + LATE), environment)
    if status != 0:
        put("error", describe_end(status, tail))
    put("seconds", time.monotonic() - began)
    for name in shares:
        if (workdir / name / "metrics.jsonl").exists():
            put(name, {"metrics": read_metrics(workdir / name), "done": read_file(workdir / name / "done.json")})
    summary = read_file(workdir / "summary.json")
    put("summary", {key: value for key, value in summary.items() if key not in ("samples", "reconstructions", "next")})


def read_file(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
