"""Class-conditional samples judged by a classifier of real images, for every sampler and number of network evaluations.

    pip install scikit-learn
    python tests/benchmarks/samplers.py --workdir=runs/ddpm-fashion --data=FOLDER --json=FILE

The classifier, a support vector machine on pixels, learns from 10,000 real training images; its accuracy on real test
images is written beside the share of samples in which it sees the class that was asked for.
"""

import argparse
import datetime
import json
import time
from pathlib import Path

import numpy as np
from sklearn.svm import SVC

from vidjax.data.readers import read_idx
from vidjax.diffusion.samplers import SAMPLERS
from vidjax.evaluation import results
from vidjax.recipes.run import Run

EVALUATIONS = (5, 10, 20, 50)


def read(folder: Path, split: str, kind: str) -> np.ndarray:
    return np.asarray(read_idx(next(folder.glob(f"{split}-{kind}-*ubyte*"))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for flag in ("workdir", "data", "json"):
        parser.add_argument(f"--{flag}", required=True, type=Path)
    parser.add_argument("--per_class", type=int, default=20)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), help="measured anew; others stay as in --json")
    args = parser.parse_args()
    flat = lambda images: images.reshape(len(images), -1).astype(np.float32) / 255
    real = {
        kind: (flat(read(args.data, kind, "images")), read(args.data, kind, "labels")) for kind in ("train", "t10k")
    }
    classifier = SVC(C=10).fit(*(a[:10_000] for a in real["train"]))
    accuracy = classifier.score(*(a[:2_000] for a in real["t10k"]))
    generator = Run(args.workdir).generator()
    labels = [label for label in range(10) for _ in range(args.per_class)]
    table = json.loads(args.json.read_text())["recognised"] if args.json.exists() else {}
    for sampler in args.samplers:
        table[sampler] = {}
        for evaluations in EVALUATIONS:
            steps = evaluations // 2 if sampler == "heun" else evaluations  # Heun asks twice a step
            began = time.perf_counter()
            images = generator(labels, sampler=sampler, num_steps=steps, seed=0)[:, 0, :, :, 0]
            share = float((classifier.predict(flat(images)) == labels).mean())
            table[sampler][evaluations] = share
            print(f"{sampler:<10} {evaluations:>3} {share:.3f}  {time.perf_counter() - began:.1f} s", flush=True)
    figures = {
        "date": datetime.date.today().isoformat(),
        "device": results.device(),
        "versions": results.versions(),
        "command": "python tests/benchmarks/samplers.py --workdir=runs/ddpm-fashion --data=FOLDER --json=FILE",
        "classifier_on_real_images": accuracy,
        "samples": len(labels),
        "recognised": table,
    }
    args.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"the classifier on real test images: {accuracy:.3f}")


if __name__ == "__main__":
    main()
