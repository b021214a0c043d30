"""Does AnimateDiff's training converge, and MotionDirector's on top of it? Drawn shapes, from nothing, on CPUs.

    python tests/benchmarks/animate_diff.py --out=FOLDER [--json=FILE] [--machine=WORDS] [--count=64]

On a GPU: --batch_size=32 --steps ours=8000 theirs=8000 director=1000, and --only for parts that train side by side.

1. A Stable Diffusion of toy size learns single frames of drawn shapes: autoencoder, then U-Net and text encoder. Its
   noise is that of AnimateDiff's motion modules ("linear"), or with --noise=scaled_linear Stable Diffusion's own, as
   the modules meet it on a real one: they are told a time at which the pictures' model saw less noise.
2. `configs/animate_diff.py` trains new motion modules on it, on clips of these shapes, every second frame, that move
   left, right, up or down, a quarter each; captions say size, colour and shape, none says where to. Three times: by
   their settings, by ours, and by ours on clips and two single frames of each.
3. `configs/motion_director.py` goes on from ours, on four clips that all move right.

Videos are read by `vidjax.metrics.drawn`: "shown" is the share whose every frame shows the caption's size, colour and
shape; "moves" the share that goes in one direction at the clips' speed (the mean step within half of it, every step
within all of it). Of steps, measured in those of the clips, "step" is the mean length, "way" that of a video's mean
step, "off" the mean distance of steps from that. Samples are of the captions that MotionDirector's clips do not have,
at 25 steps of DDIM.
`seconds` are of the wall, `processor_seconds` of all threads. What FOLDER has already is not trained again.
"""

import argparse
import datetime
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from shapes_folder import configs, run, scale, start

from vidjax.data.combinations import FIELD, MARGIN, SHAPES, SIZES
from vidjax.data.shapes import MOVES, PALETTE, SPEED, draw
from vidjax.data.video_writing import contact_sheet, save_png, slug
from vidjax.evaluation import results
from vidjax.generation.adapters import merge_lora_files
from vidjax.generation.generator import Generator
from vidjax.generation.pretrained import load_generator
from vidjax.metrics.drawn import read_steps, read_video

RECIPES = Path(__file__).parents[2] / "configs"
FRAMES, STRIDE, PIXELS, PLACES = 6, 2, 32, 8
WORDS = ("a", *SIZES, *PALETTE, *SHAPES)
DRAWN = {f"a {size} {colour} {shape}": (size, colour, shape) for size, colour, shape in product(SIZES, PALETTE, SHAPES)}
LOOKS = {look: what for look, what in DRAWN.items() if what[1] in ("red", "green", "blue")}
DIRECTED = ("a large red circle", "a small blue bar", "a large green circle", "a small red bar")  # all move right
SHOWN = "a small red circle"
AT_ONCE = 32
DIM = 64
LONG = STRIDE * (FRAMES - 1) + 1  # frames of a clip, of which every `STRIDE`th is taken
SMALL = (f"--config.data.frames={FRAMES}", f"--config.data.size={PIXELS}", f"--config.data.stride={STRIDE}")
SMALL += ("--config.data.source=frames", "--config.data.workers=0", "--config.data.cache=True")
MOTION = tuple(  # as the recipe has it, but quicker here
    f"--config.stages.motion.{key}"
    for key in (
        "train.dtype=float32",
        "train.remat=none",
        "train.log_every=10",
        "finetune.encode_once=True",
        "finetune.drop=0.1",
    )
)
STEPS = {"autoencoder": 500, "diffusion": 1600, "theirs": 200, "ours": 1100, "images": 1100, "director": 1000}
OURS = (
    "--config.motion_adapter=v2",
    "--config.stages.motion.loss.weighting=edm",
    "--config.stages.motion.train.ema=0.99",
    "--config.stages.motion.optimizer.learning_rate=1.5e-3",
    "--config.stages.motion.optimizer.warmup=50",
    "--config.stages.motion.optimizer.schedule=cosine",
)
SETTINGS = {  # of the stage `motion`
    "theirs": ("--config.motion_adapter=v1",),
    "ours": OURS,
    "images": (*OURS, "--config.stages.motion.loss.own_images=2"),
}


def clip(look: str, move: str, random: np.random.Generator) -> np.ndarray:
    """A clip in which the shape is whole in every frame, wherever that is."""
    size, colour, shape = DRAWN[look]
    way = SPEED * (LONG - 1)
    start = random.uniform(MARGIN, 1 - MARGIN, 2)
    for axis, along in enumerate(MOVES[move]):
        if along:
            begin = random.uniform(MARGIN, 1 - MARGIN - way)
            start[axis] = begin if along > 0 else 1 - begin
    return draw(shape, colour, move, LONG, PIXELS, SIZES[size], tuple(start), FIELD)


def write_clips(folder: Path, clips: Sequence[tuple[str, str]], seed: int) -> Path:
    """Clips of these looks and moves as folders of pictures, with their captions beside them."""
    random = np.random.default_rng(seed)
    for number, (look, move) in enumerate(clips):
        name = f"{number:05d}-{slug(look)}"
        for i, frame in enumerate(clip(look, move, random)):
            save_png(folder / name / f"{i}.png", frame)
        (folder / f"{name}.txt").write_text(look)
    return folder


def call(program: str, *flags: str) -> None:
    """Runs one of the programs."""
    subprocess.run([sys.executable, "-m", f"vidjax.{program}", *flags], check=True)


def train(recipe: str, workdir: Path, stages: Sequence[str], *flags: str) -> Path:
    """Trains the stages of a recipe; returns the folder, or the file of adapters, that is exported of it."""
    for stage in stages:
        call("main", f"--config={RECIPES / recipe}", f"--workdir={workdir}", f"--stage={stage}", *SMALL, *flags)
    call("export", f"--workdir={workdir}", "--format=diffusers", f"--out={workdir / 'folder'}")
    return workdir / "folder"


def pictures(out: Path, noise: str) -> None:
    """The model of single frames: its autoencoder, which sees more colours, then all else of it."""
    unet = dict(unet=(48, 64), blocks=2, attend_first=False, noise=noise)
    start(out / "start", configs(WORDS, DIM, vae=(24, 48, 64), vae_groups=8, layers=1, longest=6, **unet), WORDS)
    coded = run("autoencoder", out / "start", out, STEPS["autoencoder"], *stills(out / "drawn"))
    random = np.random.default_rng(3)
    scale(coded, np.stack([clip(look, move, random) for look in LOOKS for move in MOVES]))
    learn = "--config.stages.tune.loss.weighting=min_snr", "--config.stages.tune.optimizer.learning_rate=1.5e-3"
    run("diffusion", coded, out, STEPS["diffusion"], *stills(out / "clips"), *learn)


def stills(clips: Path) -> list[str]:
    """Flags of `shapes_recipe.py` for frames of these clips."""
    few = ["--stage=tune", "--config.data.frames=1", f"--config.data.path={clips}"]
    return [*SMALL, *few, f"--config.sample.prompts={SHOWN}"]


def motion(out: Path, name: str, batch_size: int) -> None:
    """Motion modules with these of `SETTINGS`."""
    flags = [f"--config.pretrained={out / 'diffusion-folder'}", f"--config.data.path={out / 'clips'}", *MOTION]
    flags += [f"--config.stages.motion.train.{key}" for key in (f"steps={STEPS[name]}", f"batch_size={batch_size}")]
    flags += [f"--config.sample.prompts={SHOWN}"]
    train("animate_diff.py", out / name, ["motion"], *flags, *SETTINGS[name])


def director(out: Path) -> None:
    """Adapters of our motion modules."""
    flags = [f"--config.pretrained={out / 'ours' / 'folder'}", f"--config.data.path={out / 'right'}"]
    flags += [f"--config.train.{key}" for key in ("dtype=float32", "frozen_dtype=float32", "remat=none")]
    flags += ["--config.stages.motion.loss.weighting=edm"]  # with equal weights none of 1,000 steps turned a clip
    flags += [f"--config.train.steps={STEPS['director']}", f"--config.sample.prompts={SHOWN}"]
    train("motion_director.py", out / "director", ["appearance", "motion"], *flags)


def timed(out: Path, name: str, made: Path, make: Callable[[], None]) -> None:
    """Calls `make` unless there is what it makes; the seconds of its programs go to OUT/seconds."""
    if made.exists():
        return
    began, used = time.monotonic(), spent()
    make()
    (out / "seconds").mkdir(exist_ok=True)
    found = {"seconds": round(time.monotonic() - began), "processor_seconds": round(spent() - used)}
    (out / "seconds" / f"{name}.json").write_text(json.dumps(found))


def spent() -> float:
    """Processor seconds of the programs that ran so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def trained(stage: Path) -> dict[str, float]:
    """A stage's steps, and the mean loss of the first and the last tenth of its training."""
    found = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in found]
    tenth = max(len(losses) // 10, 1)
    begin, end = (round(float(np.mean(some)), 4) for some in (losses[:tenth], losses[-tenth:]))
    return {"steps": found[-1]["step"], "first loss": begin, "last loss": end}


def shares(videos: Sequence[np.ndarray], looks: Sequence[str]) -> dict[str, float]:
    """What the module says of videos."""
    seen = [read_video(video, STRIDE) for video in videos]
    shown = [(each["size"], each["colour"], each["shape"]) == LOOKS[look] for each, look in zip(seen, looks)]
    moves = [each["direction"] for each in seen]
    found = {"shown": np.mean(shown), "moves": np.mean([bool(move) for move in moves])}
    found |= {"both": np.mean([a and bool(b) for a, b in zip(shown, moves)])}
    found |= {move: np.mean([move == each for each in moves]) for move in MOVES}
    steps = np.stack([read_steps(video, STRIDE) for video in videos])
    off = np.linalg.norm(steps - steps.mean(1, keepdims=True), axis=-1)
    found |= {"step": np.linalg.norm(steps, axis=-1).mean(), "way": np.linalg.norm(steps.mean(1), axis=-1).mean()}
    found |= {"off": off.mean()}
    return {name: round(float(share), 4) for name, share in found.items()}


def sample(generator: Generator, looks: Sequence[str], **how) -> list[np.ndarray]:
    """A video of each caption."""
    batches = [looks[i : i + AT_ONCE] for i in range(0, len(looks), AT_ONCE)]
    return [video for seed, batch in enumerate(batches, 100) for video in generator(batch, seed=seed, **how)]


def generators(out: Path, settings: Sequence[str]) -> dict[str, Generator]:
    """What makes videos after each step, as anyone would load it."""
    base = out / "diffusion-folder"
    found = {
        "frames by the model of pictures": load_generator(base, FRAMES),
        "new motion modules": load_generator(base, FRAMES, motion_adapter="v3"),
        **{f"AnimateDiff, {name}": load_generator(out / name / "folder", FRAMES) for name in settings},
        "MotionDirector": load_generator(out / "ours" / "folder", FRAMES),
    }
    directed = found["MotionDirector"]
    directed.params = merge_lora_files(directed, [str(out / "director" / "folder")])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--noise", choices=("linear", "scaled_linear"), default="linear", help="of the pictures' model")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="ours among them")
    parser.add_argument("--batch_size", type=int, default=8, help="of motion modules")
    parser.add_argument("--steps", nargs="+", default=[], metavar="STAGE=STEPS", help=f"in place of {STEPS}")
    parser.add_argument("--only", nargs="+", choices=("pictures", *SETTINGS, "director"), help="train these, and stop")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--machine", default="")
    args = parser.parse_args()
    for name, steps in (each.split("=") for each in args.steps):
        if name not in STEPS:
            parser.error(f"--steps {name}={steps}: choose some of {', '.join(STEPS)}")
        STEPS[name] = int(steps)
    out = args.out
    if not (out / "clips").exists():
        for seed, (name, looks) in enumerate({"drawn": DRAWN, "clips": LOOKS}.items()):
            every = [(look, move) for look in looks for move in MOVES for _ in range(PLACES)]
            write_clips(out / name, every, seed)
        write_clips(out / "right", [(look, "right") for look in DIRECTED], 2)
    parts = {"pictures": (out / "diffusion-folder", partial(pictures, out, args.noise))}
    parts |= {name: (out / name / "folder", partial(motion, out, name, args.batch_size)) for name in args.settings}
    parts |= {"director": (out / "director" / "folder", partial(director, out))}
    for name in args.only or parts:
        timed(out, name, *parts[name])
    if args.only:
        return

    random, looks = np.random.default_rng(4), list(LOOKS)
    real = [(clip(look, move, random)[::STRIDE], look) for look in looks for move in MOVES]
    rows, made = {"clips": shares(*zip(*real))}, {}
    unseen = [look for look in looks if look not in DIRECTED]
    asked = [unseen[i % len(unseen)] for i in range(args.count)]
    for name, generator in generators(out, args.settings).items():
        if not made:
            coded, _ = generator.reconstruct([video for video, _ in real])
            rows["clips through the autoencoder"] = shares(coded, [look for _, look in real])
        made[name] = sample(generator, asked, num_steps=25, guidance_scale=args.guidance)
        rows[name] = shares(made[name], asked)
        print(name, rows[name], flush=True)
    stages = ["autoencoder/tune", "diffusion/tune"]
    stages += [*(f"{name}/motion" for name in args.settings), "director/appearance", "director/motion"]
    found = {
        "command": shlex.join(["python", "tests/benchmarks/animate_diff.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": args.machine or f"{os.cpu_count()} cores",
        "versions": results.versions(),
        "settings": {name: SETTINGS[name] for name in args.settings},
        "taken": {file.stem: json.loads(file.read_text()) for file in sorted((out / "seconds").glob("*.json"))},
        "stages": {name: trained(out / name) for name in stages},
        "samples_per_row": args.count,
        "guidance_scale": args.guidance,
        "noise": args.noise,
        "rows": rows,
    }
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    sheet = [(look, [made[name][i] for name in made]) for i, look in enumerate(asked[: len(unseen)])]
    contact_sheet(out / "samples.png", [videos for _, videos in sheet], [look for look, _ in sheet])


if __name__ == "__main__":
    main()
