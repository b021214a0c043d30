"""What the stages of a trained cascade add to held-out clips made smaller, beside plain enlargement of the same.

    python tests/benchmarks/cascade.py --workdir=runs/imagen_video-clips [--levels 0 0.33] [--json=FILE]

Plain: frames repeated, pictures bilinear. PSNR (dB) and SSIM against the clip (SSIM at 11 pixels or more), sharpness as
a share of the clip's, motion as a share of the clip's mean difference of neighbouring frames.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from vidjax.data.transforms import to_uint8, to_unit
from vidjax.evaluation import results
from vidjax.generation import cascade
from vidjax.metrics.reconstruction import psnr, sharpness, ssim
from vidjax.recipes import build as recipe
from vidjax.recipes.config import stage_names
from vidjax.recipes.run import Run


def motion(videos: np.ndarray) -> float:
    return float(np.abs(np.diff(videos.astype(np.float32), axis=1)).mean())


def compared(made: np.ndarray, clips: np.ndarray) -> dict[str, float]:
    figures = {"psnr": psnr(made, clips), "ssim": ssim(made, clips), "sharpness": sharpness(made, clips)}
    figures = {name: round(float(np.mean(value)), 3) for name, value in figures.items()}
    return figures | {"motion": round(motion(made) / motion(clips), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--levels", nargs="+", type=float, default=[0.0, 1 / 3])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    config, found = Run(args.workdir).config, {}
    whole = Run(args.workdir).generator()
    assert isinstance(whole, cascade.Cascade)
    for name, generator in list(zip(stage_names(config), whole.generators, strict=True))[1:]:
        dataset = recipe.build(config, name, args.workdir).dataset()
        clips, embedder = np.concatenate(dataset.windows("heldout", per_clip=1)), cascade.embedder(generator)
        low = embedder.shrink(to_unit(clips))
        given = np.asarray(to_uint8(low))
        found[name] = {"plain": compared(np.asarray(to_uint8(embedder.enlarge(low))), clips)}
        for level in args.levels:
            made = generator(dataset.texts, lowres=given, lowres_level=level)
            found[name][f"level {level:.2f}"] = compared(made, clips)
        for how, figures in found[name].items():
            print(name, how, figures, flush=True)
    figures = {"device": results.device(), "versions": results.versions(), "stages": found}
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
