"""How LFDM's small recipe moves shapes, against what they do: flow errors beside baselines, as JSON.

`python tests/benchmarks/latent_flow.py WORKDIR --json=FILE [--sheets=DIR]`, of a run of configs/lfdm.py, with OpenCV.
For each drawn clip the model is given the first frame, which is that of four clips that go four ways, and the caption;
held out are pictures that no clip of the training begins with: smaller shapes, beside the middle. Errors are end-point
errors, in pixels per frame: the mean length of the difference of two flows (metrics.flow, Farneback's) of the sampled
video and of the clip, over frames and over the pixels that move, those on or beside the shape in either frame. Beside
them:

still: nothing moves; constant: all clips' mean flow, what a model knows that reads no caption; own_constant: of each
clip the mean of its flow over those pixels and all its frames, which no model is told; warped: the clip's own frames
through the flow autoencoder, what the diffusion is to make. known: the same three by the true speed of the shapes, with
the displacement of the shape's centre from the first frame to the last, by its colour, in place of Farneback's flow.
"""

import argparse
import dataclasses
import datetime
import json
import platform
import resource
from importlib.metadata import version
from pathlib import Path

import numpy as np

from vidjax.data.shapes import MOVES, SPEED, draw
from vidjax.metrics.flow import flow
from vidjax.recipes.run import Run

RADIUS, BESIDE = 0.14, 0.05  # of held-out shapes, in widths: how large, how far from the middle at most
GREY, NEAR = 128, 24  # the field's shade, and how far from it a pixel's is that shows the shape


def shown(video: np.ndarray) -> np.ndarray:
    """Where the shape is, [t, h, w]."""
    return np.abs(video.astype(int) - GREY).max(-1) > NEAR


def center(frame: np.ndarray) -> np.ndarray:
    """(down, right) of the middle of what is not the field, in pixels, weighed by how far from its shade it is."""
    weight = np.abs(frame.astype(float) - GREY).sum(-1)
    weight = np.where(weight > NEAR, weight, 0) + 1e-9
    grid = np.stack(np.indices(weight.shape), -1)
    return (weight[..., None] * grid).sum((0, 1)) / weight.sum()


def error(ours: np.ndarray, theirs: np.ndarray, where: np.ndarray) -> float:
    """The mean end-point error where `where` is true."""
    return float(np.linalg.norm(ours - theirs, axis=-1)[where].mean())


def measure(made: np.ndarray, clips: np.ndarray, warped: np.ndarray, captions: list[str]) -> dict:
    """The figures of videos [n, t, h, w, 3]."""
    flows = [np.stack([flow(video) for video in each]) for each in (made, clips, warped)]
    ours, theirs, through = flows
    seen = np.stack([shown(clip)[:-1] | shown(clip)[1:] for clip in clips])
    mean = theirs.mean((0, 1))[None, None] + np.zeros_like(theirs)
    own = np.stack([each[where].mean(0) + np.zeros_like(each) for each, where in zip(theirs, seen)])
    found = {
        "sample": error(ours, theirs, seen),
        "warped": error(through, theirs, seen),
        "still": error(0 * theirs, theirs, seen),
        "constant": error(mean, theirs, seen),
        "own_constant": error(own, theirs, seen),
    }
    size, steps = clips.shape[2], clips.shape[1] - 1
    true = np.array([MOVES[caption.split()[-1]] for caption in captions]) * SPEED * size
    moved = np.stack([(center(video[-1]) - center(video[0])) / steps for video in made])
    apart = np.linalg.norm(moved - true, axis=-1)
    moves = np.array(list(MOVES.values()))
    right = np.argmax(moved @ moves.T, 1) == np.argmax(true @ moves.T, 1)
    known = {"sample": apart.mean(), "still": np.linalg.norm(true, axis=-1).mean()}
    known |= {"constant": np.linalg.norm(true - true.mean(0), axis=-1).mean(), "direction_right": right.mean()}
    known["clips_themselves"] = np.mean(
        [np.linalg.norm((center(v[-1]) - center(v[0])) / steps - t) for v, t in zip(clips, true)]
    )
    pixels = {
        "sample": np.abs(made - clips.astype(float)).mean(),
        "warped": np.abs(warped - clips.astype(float)).mean(),
    }
    pixels["still"] = np.abs(clips[:, :1] - clips.astype(float)).mean()
    rounded = lambda values: {key: round(float(value), 4) for key, value in values.items()}
    return {"flow_error": rounded(found), "known": rounded(known), "pixel_error_of_255": rounded(pixels)}


def held_out(captions: list[str], frames: int, size: int) -> np.ndarray:
    """Clips of the captions that are not among those of the training."""
    starts = np.random.default_rng(0).uniform(0.5 - BESIDE, 0.5 + BESIDE, (len(captions), 2))
    words = [caption.split() for caption in captions]
    return np.stack(
        [draw(w[2], w[1], w[-1], frames, size, RADIUS, (down, right)) for w, (down, right) in zip(words, starts)]
    )


def main() -> None:
    """Samples, measures, writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("--json", required=True)
    parser.add_argument("--sheets")
    parser.add_argument("--machine", default=platform.processor() or platform.machine())
    parser.add_argument("--date", default=datetime.datetime.now(datetime.UTC).date().isoformat())
    parser.add_argument(
        "--training_seconds", type=int, help="processor seconds of the diffusion stage, as `time` counts them"
    )
    asked = parser.parse_args()
    run = Run(asked.workdir)
    generator, dataset = run.generator(), run.dataset()
    clips, captions = np.concatenate(dataset.windows("train", per_clip=1)), list(dataset.texts)
    other = held_out(captions, *clips.shape[1:3])
    found = {}
    for name, real in (("trained_pictures", clips), ("heldout_pictures", other)):
        made = generator(captions, pictures=real[:, 0])
        warped = np.concatenate([generator.decode(generator.encode(v[None]), pictures=v[None, 0]) for v in real])
        found[name] = measure(made, real, warped, captions)
        if asked.sheets:
            from vidjax.data.video_writing import contact_sheet

            np.savez_compressed(Path(asked.sheets) / f"{name}.npz", made=made, clips=real)
            for i in range(0, len(real), 5):
                rows = [real[i][None], warped[i][None], made[i][None]]
                labels = ["clip", "warped by its own flow", captions[i]]
                contact_sheet(Path(asked.sheets) / f"{name}-{i:02d}.png", rows, labels=labels)
    spent = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "command": "python -m vidjax.main --config=configs/lfdm.py --workdir=WORKDIR; "
        "python tests/benchmarks/latent_flow.py WORKDIR --json=FILE",
        "date": asked.date,
        "machine": asked.machine,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("jax", "flax")},
        "clips": len(clips),
        "size": list(clips.shape[1:4]),
        "sampler": dataclasses.asdict(generator.defaults)["sampler"],
        "num_steps": generator.defaults.num_steps,
        "steps": {name: run.stage(name).train.steps for name in run.names},
        "processor_seconds": {
            "diffusion": asked.training_seconds,
            "measuring": round(spent.ru_utime + spent.ru_stime),
        },
        **found,
    }
    Path(asked.json).write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
