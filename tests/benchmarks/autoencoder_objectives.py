"""The shipped clips' autoencoder with reconstruction alone and against discriminators, for as many steps.

    python tests/benchmarks/autoencoder_objectives.py --out=FOLDER [--steps=120] [--weight=0.1] [--json=FILE]

On held-out windows: PSNR, SSIM, and sharpness, the mean gradient magnitude of the reconstruction over the original's
(1: as sharp). OUT/beside.png shows for four clips a frame of the original and of each reconstruction, enlarged. Both
runs are of configs/lvdm.py; the adversary acts from half of the steps on. Overrides, such as
--config.autoencoder.latent_channels=4, which leaves more to blur, are of both.
"""

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx
from PIL import Image

from vidjax import settings
from vidjax.data.transforms import to_uint8, to_unit
from vidjax.evaluation import results
from vidjax.evaluation.results import rate_distortion
from vidjax.metrics.reconstruction import psnr
from vidjax.models.autoencoder import Autoencoder, AutoencoderConfig
from vidjax.models.parameters import merge
from vidjax.recipes.run import Run
from vidjax.runtime.compiling import jit
from vidjax.runtime.storage import write_json

CONFIG = Path(__file__).parents[2] / "configs" / "lvdm.py"
RUNS = {"reconstruction": "clips", "adversary": "adversary"}
SHOWN, ENLARGED = 4, 3


def trained(workdir: Path, variant: str, steps: int, weight: float, overrides: Sequence[str]) -> Autoencoder:
    """The averaged autoencoder after so many steps."""
    command = [sys.executable, "-m", "vidjax.main", f"--config={CONFIG}:{variant}", f"--workdir={workdir}"]
    command += ["--stage=autoencoder", f"--config.stages.autoencoder.train.steps={steps}"]
    if variant == "adversary":
        loss = "--config.stages.autoencoder.loss"
        command += [f"{loss}.start={steps // 2}", f"{loss}.disc_weight={weight}"]
    subprocess.run([*command, *overrides], check=True)
    section = settings.stage_settings(Run(workdir).config, "autoencoder")
    config = settings.construct(AutoencoderConfig, section["autoencoder"], "autoencoder")
    model = nnx.eval_shape(lambda: Autoencoder(config, rngs=nnx.Rngs(0)))
    return merge(nnx.graphdef(model), Run(workdir).generator("autoencoder").params)


def reconstructed(model: Autoencoder, videos: Sequence[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
    """Of each clip's windows the reconstructions, and the KL of their posteriors."""

    @jit
    def through(x):
        posterior = model.encode(to_unit(x))
        return to_uint8(model.decode(posterior.mode)), posterior.kl()

    return [tuple(map(np.concatenate, zip(*(through(w[None]) for w in clip)))) for clip in videos]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--machine", default="")
    parser.add_argument("--weight", type=float, default=0.1)
    args, overrides = parser.parse_known_args()
    table, columns = {}, []
    for name, variant in RUNS.items():
        workdir = args.out / name
        model = trained(workdir, variant, args.steps, args.weight, overrides)
        heldout = Run(workdir).dataset().windows("heldout")
        decoded, kl = zip(*reconstructed(model, heldout))
        done = json.loads((workdir / "autoencoder" / "done.json").read_text())
        table[name] = {
            "psnr": float(np.mean([psnr(a, b).mean() for a, b in zip(decoded, heldout)])),
            **rate_distortion(heldout, decoded, kl),
            "seconds": done["seconds"],
        }
        columns = columns or [np.concatenate([clip[0, 0] for clip in heldout[:SHOWN]])]
        columns.append(np.concatenate([clip[0, 0] for clip in decoded[:SHOWN]]))
    picture = Image.fromarray(np.concatenate(columns, 1))
    picture.resize((picture.width * ENLARGED, picture.height * ENLARGED), Image.Resampling.NEAREST).save(
        args.out / "beside.png"
    )
    command = " ".join(["python", "tests/benchmarks/autoencoder_objectives.py", *sys.argv[1:]])
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    found = {"command": command, "date": date, "machine": args.machine, "versions": results.versions(), "runs": table}
    print(json.dumps(found, indent=1))
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    main()
