"""Tune-A-Video's three ablations, one flag each, and the figures of their edits side by side.

    python tests/benchmarks/ablations.py --pretrained=FOLDER --video=clip.mp4 --prompt="..." --prompts="...;..." \\
        --out=FOLDER [--clip=CLIP_FOLDER] [--json=FILE] [--config.data.size="(64, 64)" ...]

`inversion_error` is how far the clip's latents come back from their inversion without guidance; the others are those of
`vidjax.evaluate` on the edits. All further arguments go to every run.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from vidjax.data.video_io import Video, write_mp4

CONFIG = Path(__file__).parents[2] / "configs" / "tune_a_video.py"
ABLATIONS = {
    "full": [],
    "no tuning": ["--config.stages.tune.train.steps=0"],
    "no inversion": ["--config.sample.invert=False"],
    "no attention between frames": ["--config.model.keys=frame"],
}


def edits_alone(workdir: Path, summary: dict, folder: Path) -> None:
    """The right halves of the run's videos, each with its prompt, for the evaluator."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in summary["samples"]:
        with Video(workdir / entry["mp4"]) as video:
            frames, fps = video.read(range(video.frames)), video.fps
        name = folder / Path(entry["mp4"]).name
        write_mp4(name, np.ascontiguousarray(frames[:, :, frames.shape[2] // 2 :]), fps)
        name.with_suffix(".txt").write_text(entry["caption"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("pretrained", "video", "prompt", "prompts", "out"):
        parser.add_argument(f"--{flag}", required=True)
    parser.add_argument("--clip")
    parser.add_argument("--json", type=Path)
    args, more = parser.parse_known_args()
    table = {}
    for name, flags in ABLATIONS.items():
        workdir = Path(args.out) / name.replace(" ", "-")
        command = [sys.executable, "-m", "vidjax.main", f"--config={CONFIG}", f"--workdir={workdir}"]
        command += [f"--config.pretrained={args.pretrained}", f"--config.data.video={args.video}"]
        command += [f"--config.prompt={args.prompt}", f"--config.sample.prompts={args.prompts}", *more, *flags]
        subprocess.run(command, check=True)
        summary = json.loads((workdir / "summary.json").read_text())
        edits_alone(workdir, summary, workdir / "edits")
        metrics = "flow_smoothness,motion_magnitude" + (",frame_consistency,text_alignment" if args.clip else "")
        command = [sys.executable, "-m", "vidjax.evaluate", f"--videos={workdir / 'edits'}", f"--metrics={metrics}"]
        command += [f"--json={workdir / 'figures.json'}", *([f"--clip={args.clip}"] if args.clip else [])]
        subprocess.run(command, check=True)
        figures = json.loads((workdir / "figures.json").read_text())
        table[name] = {"inversion_error": summary.get("inversion_error"), "evaluate": figures}
    text = json.dumps({"arguments": vars(args) | {"json": None}, "runs": table}, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
