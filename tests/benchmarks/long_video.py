"""Does a moving object go on moving? Long videos of drawn shapes against where the shapes would be, and their memory.

    python tests/benchmarks/long_video.py --out=FOLDER [--runs=noisy,clean] [--json=FILE] [--memory]

Trains `configs/lvdm.py:long` on two cores, about ten minutes a run: "noisy" knows frames under noise (conditional
latent perturbation), "clean" without. Twelve shapes are drawn for 16 frames and continued for 256. `error` is the
distance between the shape's centre and the true one, in widths of the picture, which is a torus: at most 0.71, 0.38
where the place is random. `colour` is the share of shapes with the colour they had. --memory: peak of the process that
makes 64, 256 and 2048 frames.
"""

import argparse
import datetime
import json
import subprocess
import sys
import time
from itertools import islice, product
from pathlib import Path

import numpy as np

from vidjax.data.shapes import COLOURS, MOVES, SHAPES, draw
from vidjax.data.video_writing import contact_sheet, write_mp4
from vidjax.evaluation import results
from vidjax.generation import long_video
from vidjax.recipes.run import Run

CONFIG = Path(__file__).parents[2] / "configs" / "lvdm.py"
RUNS = {"noisy": [], "clean": ["--config.stages.diffusion.loss.known_level=0.0"]}
ROWS = {"noisy": ("noisy", 0.1), "noisy, sampled clean": ("noisy", 0.0), "clean": ("clean", 0.0)}
BEGUN, HORIZONS = 16, (16, 64, 256)


def centre(video: np.ndarray) -> np.ndarray:
    """[..., 2]: (y, x) of what is not grey in each frame, as turns of the torus."""
    weight = np.maximum(np.abs(video.astype(np.float32) - 128).max(-1) - 24, 0) + 1e-6
    turns = []
    for axis in (-2, -1):
        line = weight.sum(-1 if axis == -2 else -2)
        angle = 2 * np.pi * (np.arange(line.shape[-1]) + 0.5) / line.shape[-1]
        turns.append(np.arctan2((line * np.sin(angle)).sum(-1), (line * np.cos(angle)).sum(-1)) / (2 * np.pi))
    return np.stack(turns, -1)


def colour(video: np.ndarray) -> np.ndarray:
    """[...]: which of the colours the strongest pixels of each frame are nearest to."""
    flat = video.astype(np.float32).reshape(*video.shape[:-3], -1, 3)
    strength = np.abs(flat - 128).max(-1)
    strong = strength >= np.quantile(strength, 0.97, -1, keepdims=True)
    mean = (flat * strong[..., None]).sum(-2) / strong.sum(-1)[..., None]
    return np.square(mean[..., None, :] - np.array([*COLOURS.values()])).sum(-1).argmin(-1)


def continued(workdir: Path, level: float, clips: np.ndarray, frames: int) -> np.ndarray:
    """The clips, gone on with for so many frames."""
    generator = Run(workdir).generator()
    overlap, prompts = generator.defaults.known, [""] * len(clips)
    sample = lambda seed, known: np.asarray(generator.latents(prompts, seed=seed, known=known, known_level=level))
    plan = long_video.Plan(long_video.Clips(sample, generator.latent_shape()[0]), overlap)
    tail = np.asarray(generator.encode(clips))[:, -overlap:]
    parts, count = [], 0
    for video in long_video.decode_clips(generator, long_video.sample_parts(plan, 0, 1, tail)):
        parts.append(video)
        count += video.shape[1]
        if count >= frames:
            return np.concatenate(parts, 1)[:, :frames]
    return np.concatenate(parts, 1)


def figures(video: np.ndarray, truth: np.ndarray) -> dict:
    apart = np.hypot(*np.moveaxis((centre(video) - centre(truth) + 0.5) % 1 - 0.5, -1, 0))
    same = colour(video) == colour(truth)
    at = lambda values, horizon: round(float(values[:, max(horizon - 8, 0) : horizon].mean()), 4)
    return {
        "error": {f"{n} frames": at(apart, n) for n in HORIZONS},  # mean over the last 8 of so many frames
        "colour": {f"{n} frames": at(same, n) for n in HORIZONS},
    }


def peak(command: list[str]) -> float:
    """Megabytes of a program at its largest, on Linux. Its ru_maxrss would count what its parent had when it forked."""
    process, largest = subprocess.Popen(command), 0.0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        largest = max([largest, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))])
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return round(largest / 2**10, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", default="noisy,clean")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--machine", default="")
    args, more = parser.parse_known_args()
    found: dict = {
        "command": " ".join(["python", "tests/benchmarks/long_video.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": args.machine,
        "versions": results.versions(),
    }
    for run in args.runs.split(","):
        command = [sys.executable, "-m", "vidjax.main", f"--config={CONFIG}:long", f"--workdir={args.out / run}"]
        subprocess.run([*command, *RUNS[run], *more], check=True)
        found.setdefault("training", {})[run] = json.loads((args.out / run / "diffusion" / "done.json").read_text())
    whole = BEGUN + max(HORIZONS)
    kinds = list(product(SHAPES, MOVES))
    colours = list(COLOURS)
    drawn = np.stack([draw(s, colours[(i + i // 4) % 4], m, whole, 32) for i, (s, m) in enumerate(kinds)])
    clips, truth = drawn[:, :BEGUN], drawn[:, BEGUN:]
    found["still"] = figures(np.repeat(clips[:, -1:], truth.shape[1], 1), truth)  # the object stops
    for row, (run, level) in ROWS.items():
        if run in args.runs.split(","):
            video = continued(args.out / run, level, clips, truth.shape[1])
            found.setdefault("rows", {})[row] = figures(video, truth)
            stem = args.out / row.replace(", ", "-").replace(" ", "-")
            write_mp4(stem.with_suffix(".mp4"), np.concatenate(list(np.concatenate([truth, video], 2)), 2), 8.0)
            times = [*range(0, 16, 2), *range(16, 64, 6), *range(64, 256, 24)]
            rows = [[v[times]] for pair in islice(zip(truth, video), 0, None, 3) for v in pair]
            contact_sheet(stem.with_suffix(".png"), rows, ["true", "continued"] * (len(rows) // 2))
            print(row, json.dumps(found["rows"][row]), flush=True)
    if args.memory:
        run = args.out / args.runs.split(",")[0]
        for frames in (64, 256, 2048):
            command = [sys.executable, "-m", "vidjax.sample", f"--workdir={run}", f"--frames={frames}"]
            found.setdefault("peak_megabytes", {})[frames] = peak([*command, f"--out={args.out / f'frames-{frames}'}"])
            print(frames, "frames", found["peak_megabytes"][frames], "MB", flush=True)
    text = json.dumps(found, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
