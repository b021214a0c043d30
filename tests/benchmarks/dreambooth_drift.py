"""What prior preservation is for: how far the class moves when a subject is learned, with and without it.

    python tests/benchmarks/dreambooth_drift.py --pretrained=FOLDER --out=FOLDER [--json=FILE] [--config.... ...]

FOLDER comes from `shapes_folder.py`. The subject is a magenta circle, its class the green circle, which the model
knows. After tuning, samples of both prompts are judged as drawings: how much of the shape has the subject's colour?
Untuned, all of the class is green. All further arguments go to both runs.
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from vidjax.data.shapes import COLOURS, draw
from vidjax.evaluation import results
from vidjax.generation.pretrained import load_generator
from vidjax.recipes.run import Run

CONFIG = Path(__file__).parents[2] / "configs" / "dreambooth.py"
SUBJECT, CLASS = "a x circle moves right", "a green circle moves right"
MAGENTA = (220, 50, 220)
SAMPLES = 16
RUNS = {"with prior": 16, "without prior": 0}


def pictures(folder: Path) -> None:
    """Eight drawings of the subject."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(draw("circle", "red", "right", 8)):
        Image.fromarray(frame[..., [0, 1, 0]]).save(folder / f"{i}.png")  # grey stays grey, red becomes magenta


def shares(images: np.ndarray) -> dict[str, float]:
    """Of the pixels that are not field, how many are the subject's magenta, and how many the class's green."""
    colours = np.array([MAGENTA, *COLOURS.values(), (128, 128, 128)], np.float32)
    nearest = np.square(images[..., None, :].astype(np.float32) - colours).sum(-1).argmin(-1)
    drawn = nearest < len(colours) - 1
    green = 1 + list(COLOURS).index("green")
    return {name: float((nearest[drawn] == i).mean()) for name, i in (("magenta", 0), ("green", green))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    args, more = parser.parse_known_args()
    pictures(args.out / "pictures")
    ask = lambda generator: {prompt: shares(generator([prompt] * SAMPLES, seed=1)[:, 0]) for prompt in (SUBJECT, CLASS)}
    table = {"untuned": ask(load_generator(args.pretrained))}
    for name, count in RUNS.items():
        workdir = args.out / name.replace(" ", "-")
        command = [sys.executable, "-m", "vidjax.main", f"--config={CONFIG}", f"--workdir={workdir}"]
        command += [f"--config.pretrained={args.pretrained}", f"--config.data.path={args.out / 'pictures'}"]
        command += [f"--config.prompt={SUBJECT}", f"--config.finetune.prior.prompt={CLASS}"]
        command += [f"--config.finetune.prior.count={count}", f"--config.sample.prompts={SUBJECT};{CLASS}"]
        subprocess.run([*command, *more], check=True)
        table[name] = ask(Run(workdir).generator())
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
