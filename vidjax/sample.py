"""Videos from a trained run: `python -m vidjax.sample --workdir W --prompt "..." --out DIR`."""

import dataclasses
import time
from pathlib import Path

import numpy as np
from absl import flags

from vidjax import cli
from vidjax.errors import InputError

WORKDIR = flags.DEFINE_string("workdir", None, "The run to sample from.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "A caption; give the flag several times for several videos.")
LABEL = flags.DEFINE_multi_integer("label", [], "A class number, for class-conditional models.")
FRAMES = flags.DEFINE_integer("frames", None, "Frames of the video; default: as trained.", lower_bound=1)
HEIGHT = flags.DEFINE_integer("height", None, "Height in pixels; default: as trained.", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", None, "Width in pixels; default: as trained.", lower_bound=1)
SAMPLER = flags.DEFINE_string("sampler", None, "ddpm, ddim, euler, heun, dpmpp_2m or unipc; default: the recipe's.")
NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Steps of the sampler.")
GUIDANCE_SCALE = flags.DEFINE_float("guidance_scale", None, "1: none.")
ETA = flags.DEFINE_float("eta", None, "Noise of DDIM: 0 none, 1 as DDPM.")
SEED = flags.DEFINE_integer("seed", 0, "Noise: the same seed gives the same video.")
WATERMARK = flags.DEFINE_bool("watermark", True, "Mark the videos invisibly (see vidjax.watermark).")
OUT = flags.DEFINE_string("out", None, "Folder for mp4 files and contact sheets; default: WORKDIR/more.")


def main() -> None:
    if not WORKDIR.value:
        raise InputError("--workdir is missing: name the folder of a run that vidjax.main has trained")
    from tqdm import tqdm

    from vidjax import recipe, results
    from vidjax.watermark import embed

    generator = recipe.generator(Path(WORKDIR.value))
    prompts: list[str | int] = [*PROMPT.value, *LABEL.value] or [""]
    options = {
        "sampler": SAMPLER.value,
        "num_steps": NUM_STEPS.value,
        "guidance_scale": GUIDANCE_SCALE.value,
        "eta": ETA.value,
    }
    options = {name: value for name, value in options.items() if value is not None}
    size = (HEIGHT.value or generator.size[1], WIDTH.value or generator.size[2])
    began = time.perf_counter()
    steps = dataclasses.replace(generator.defaults, **options).num_steps
    with tqdm(total=steps, desc="sampling", unit="step", disable=None) as bar:
        videos = generator(
            prompts,
            frames=FRAMES.value,
            size=size,
            seed=SEED.value,
            progress=lambda n: bar.update(int(n) - bar.n),
            **options,
        )
    if WATERMARK.value:
        videos = np.stack([embed(video) for video in videos])
    out = Path(OUT.value or Path(WORKDIR.value) / "more")
    names = [p if isinstance(p, str) else f"class {p}" for p in prompts]
    for entry in results.write_samples(out.parent, names, videos[:, None], generator.defaults.fps, out.name):
        print(out.parent / entry.get("mp4", entry["png"]))
    print(f"{len(videos)} in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    cli.start(main)
