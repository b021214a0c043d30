"""Tune-A-Video's three ablations, one flag each, and the figures of their edits side by side.

    python tests/benchmarks/ablations.py --pretrained=FOLDER --video=clip.mp4 --prompt="..." --prompts="...;..." \\
        --out=FOLDER [--clip=CLIP_FOLDER] [--json=FILE] [--config.data.size="(64, 64)" ...]

`inversion_error` is how far the clip's latents come back from their inversion without guidance; the others are those of
`vidjax.evaluate` on the edits. All further arguments go to every run. With --shapes the clip is drawn ("a red circle
moves right", no --video) and the edits are judged as drawings: is the shape of the colour that was asked for, and is it
where the clip's is? (FOLDER: from `shapes_folder.py`.)
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from vidjax.data.shapes import COLOURS, draw
from vidjax.data.video_reading import Video
from vidjax.data.video_writing import write_mp4
from vidjax.evaluation import results

CONFIG = Path(__file__).parents[2] / "configs" / "tune_a_video.py"
ABLATIONS = {
    "full": [],
    "no tuning": ["--config.stages.tune.train.steps=0"],
    "no inversion": ["--config.sample.invert=False"],
    "no attention between frames": ["--config.model.key_frames=frame"],
}


def palette(video: np.ndarray) -> np.ndarray:
    """Of each pixel the nearest of the colours that are drawn: their number, or -1 for the field."""
    colours = np.array([*COLOURS.values(), (128, 128, 128)], np.float32)
    nearest = np.square(video[..., None, :].astype(np.float32) - colours).sum(-1).argmin(-1)
    return np.where(nearest == len(COLOURS), -1, nearest)


def centre(mask: np.ndarray) -> np.ndarray:
    """(y, x) of the true pixels of one frame, as turns of the torus."""
    turns = []
    for axis, n in enumerate(mask.shape):
        angle = 2 * np.pi * (np.indices(mask.shape)[axis][mask] + 0.5) / n
        turns.append(np.arctan2(np.sin(angle).sum(), np.cos(angle).sum()) / (2 * np.pi))
    return np.array(turns)


def judged(folder: Path, clip: np.ndarray) -> dict[str, float]:
    """colour: share of all pixels of shapes that have the colour of the prompt. misplaced: distance of the shapes'
    centres in edit and clip, in widths; 0.5 where there is none. flicker: mean change of the drawn area from frame to
    frame, in areas of the clip's shape."""
    colour, misplaced, flicker = [], [], []
    for path in sorted(folder.glob("*.mp4")):
        with Video(path) as video:
            found = palette(video.read(range(video.frames)))
        asked = [i for i, name in enumerate(COLOURS) if name in path.with_suffix(".txt").read_text()]
        shapes, truth = found >= 0, palette(clip) >= 0
        colour.append(np.isin(found[shapes], asked).mean() if shapes.any() else 0.0)
        for here, there in zip(shapes, truth):
            apart = (centre(here) - centre(there) + 0.5) % 1 - 0.5 if here.any() else [0.5, 0.0]
            misplaced.append(np.hypot(*apart))
        area = shapes.sum((1, 2)) / truth.sum((1, 2)).mean()
        flicker.append(np.abs(np.diff(area)).mean())
    return {
        name: float(np.mean(values))
        for name, values in dict(colour=colour, misplaced=misplaced, flicker=flicker).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("pretrained", "prompt", "prompts", "out"):
        parser.add_argument(f"--{flag}", required=True)
    parser.add_argument("--video")
    parser.add_argument("--shapes", action="store_true")
    parser.add_argument("--clip")
    parser.add_argument("--json", type=Path)
    args, more = parser.parse_known_args()
    table = {}
    drawing = None
    if args.shapes:
        _, colour, shape, _, move = args.prompt.split()
        drawing = draw(shape, colour, move, 8)
        args.video = str(Path(args.out) / "clip.mp4")
        Path(args.out).mkdir(parents=True, exist_ok=True)
        write_mp4(args.video, drawing, 8.0)
    for name, flags in ABLATIONS.items():
        workdir = Path(args.out) / name.replace(" ", "-")
        command = [sys.executable, "-m", "vidjax.main", f"--config={CONFIG}", f"--workdir={workdir}"]
        command += [f"--config.pretrained={args.pretrained}", f"--config.data.video={args.video}"]
        command += [f"--config.prompt={args.prompt}", f"--config.sample.prompts={args.prompts}", *more, *flags]
        subprocess.run(command, check=True)
        summary = json.loads((workdir / "summary.json").read_text())
        metrics = "flow_smoothness,motion_magnitude" + (",frame_consistency,text_alignment" if args.clip else "")
        command = [sys.executable, "-m", "vidjax.evaluate", f"--videos={workdir / 'samples'}", f"--metrics={metrics}"]
        command += [f"--json={workdir / 'figures.json'}", *([f"--clip={args.clip}"] if args.clip else [])]
        subprocess.run(command, check=True)
        figures = json.loads((workdir / "figures.json").read_text())
        table[name] = {"inversion_error": summary.get("inversion_error"), "evaluate": figures}
        if drawing is not None:
            table[name] |= judged(workdir / "samples", drawing)
    found = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": results.device(),
        "versions": results.versions(),
        "settings": more,
        "runs": table,
    }
    text = json.dumps(found, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
