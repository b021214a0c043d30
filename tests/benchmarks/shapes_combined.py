"""Does a caption that training never saw say what is drawn? `configs/lvdm.py:shapes`, by property.

    python tests/benchmarks/shapes_combined.py --out=FOLDER [--count=240] [--json=FILE] [--machine=WORDS]

Trains the recipe, or takes what FOLDER has of it, then samples captions of the combinations that were held out, and of
those that were trained on, and reads each video (`vidjax.metrics.drawn`). "clips": the drawn clips themselves through
the reader; "coded": through the autoencoder and the reader, what the samples could reach at most. `processor_seconds`
are of all threads; half of them are the time on two cores that nothing else uses.
"""

import argparse
import datetime
import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from vidjax.data.combinations import PLACES, SPLITS, combinations
from vidjax.data.video_writing import contact_sheet
from vidjax.evaluation import results
from vidjax.metrics.drawn import shares
from vidjax.recipes.run import Run

CONFIG = Path(__file__).parents[2] / "configs" / "lvdm.py"
AT_ONCE = 48


def windows(split: str, frames: int) -> list[tuple[np.ndarray, str]]:
    """The first frames of a clip of every combination, each on another way; with its caption."""
    source, found = combinations(split=split), []
    for number in range(len(SPLITS[split])):
        item = source[number * PLACES + number % PLACES]
        with item.open() as video:
            found.append((video.read(range(frames)), item.text))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--machine", default="")
    args, more = parser.parse_known_args()
    command = [sys.executable, "-m", "vidjax.main", f"--config={CONFIG}:shapes", f"--workdir={args.out}"]
    subprocess.run([*command, *more], check=True)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = Run(args.out)
    generator = run.generator()
    rows: dict = {}
    for split, shown in SPLITS.items():
        clips = windows(split, generator.size[0])
        rows[f"{split}, clips"] = shares(clips)
        coded, _ = generator.reconstruct([video for video, _ in clips])
        rows[f"{split}, coded"] = shares([(video, text) for video, (_, text) in zip(coded, clips)])
        captions = [shown[i % len(shown)].caption for i in range(args.count)]
        batches = [captions[i : i + AT_ONCE] for i in range(0, args.count, AT_ONCE)]
        videos = [video for seed, batch in enumerate(batches, 100) for video in generator(batch, seed=seed)]
        rows[f"{split}, samples"] = shares(list(zip(videos, captions)))
        sheet = list(zip(captions, videos))[: len(SPLITS["heldout"])]
        contact_sheet(
            args.out / f"{split}.png", [video[None] for _, video in sheet], labels=[text for text, _ in sheet]
        )
    found = {
        "command": shlex.join(["python", "tests/benchmarks/shapes_combined.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": args.machine or f"{os.cpu_count()} cores",
        "versions": results.versions(),
        "training": {name: json.loads((args.out / name / "done.json").read_text()) for name in run.names},
        "processor_seconds": round(spent.ru_utime + spent.ru_stime),
        "samples_per_row": args.count,
        "rows": rows,
    }
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
