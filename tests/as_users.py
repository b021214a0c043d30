"""A tiny model of other people's, tuned, exported and sampled by the programs, as users do."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from starts import program

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "vidjax" / "clips" / "real" / "path.mp4"
SMALL = {"data.size": (16, 16), "data.frames": 2, "data.workers": 0, "sample.num_steps": 2}
STAGE = dict(batch_size=1, log_every=1, remat="none", dtype="float32", frozen_dtype="float32")


def run(name: str, *arguments: str | Path, env: Mapping[str, str]) -> str:
    """What a program that succeeds says."""
    done = program(name, *arguments, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tune(
    recipe: str, source: Path, workdir: Path, env: Mapping[str, str], stage: str = "tune", **settings: Any
) -> Path:
    """Two steps of a recipe's stage on a shipped clip; `settings` by name, __ for a dot. Returns `workdir`."""
    clips = workdir.with_name(f"{workdir.name}-clips")
    clips.mkdir()
    shutil.copy(CLIP, clips)
    named = {name.replace("__", "."): value for name, value in settings.items()}
    given = {**SMALL, **{f"stages.{stage}.train.{name}": value for name, value in STAGE.items()}, **named}
    given = {"pretrained": source, "data.path": clips, **given}
    flags = [f"--config.{name}={value}" for name, value in given.items()]
    run("main", f"--config={ROOT}/configs/{recipe}", f"--workdir={workdir}", "--max_steps=2", *flags, env=env)
    lines = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and all(math.isfinite(line["loss"]) for line in lines)
    return workdir


def picture_of(folder: Path) -> Path:
    """A picture of other sides than the videos'."""
    path = folder / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    return path


def latents_of(model: str, out: Path, env: Mapping[str, str], *flags: str) -> np.ndarray:
    """What `--workdir=...` or `--pretrained=...` samples with these flags, as `tune` has trained it."""
    small = ("--frames=2", "--height=16", "--width=16", "--num_steps=2", f"--save_latents={out}.npy")
    run("sample", model, *small, *flags, f"--out={out}", env=env)
    assert list(out.glob("*.png"))
    return np.load(f"{out}.npy")
