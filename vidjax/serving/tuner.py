"""A tuner: the process that tunes models on clips and pictures of users, one at a time, each with `vidjax.main`."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidjax.data.animation import encode_animation
from vidjax.data.video_writing import save_png, write_mp4
from vidjax.errors import InputError
from vidjax.runtime.run_files import read_metrics
from vidjax.runtime.storage import whole_file
from vidjax.serving.children import own_environment
from vidjax.serving.files import PREVIEW, RUN
from vidjax.serving.jobs import TUNE, Job, Jobs
from vidjax.serving.requests import Card
from vidjax.serving.uploads import read_input

LOOK_SECONDS = 0.5  # between two looks at a run
SAMPLES = 4  # times that samples are drawn in a run
POINTS = 100  # of a curve
CRF = 4  # of the clip that is tuned on: nearly as it was
# The program, which ends with this process, whose number is its first argument.
CODE = """
import runpy, sys
from vidjax.serving.parent import watch_parent
watch_parent(int(sys.argv.pop(1)))
runpy.run_module("vidjax.main", run_name="__main__", alter_sys=True)
"""


class Tuner:
    """Takes jobs in turn and tunes the folders `models`; a run that was cut off goes on where it was saved."""

    def __init__(self, jobs: Jobs, models: Mapping[str, str], cards: Mapping[str, Card], name: str = "tuner"):
        self.jobs, self.models, self.cards, self.name = jobs, models, cards, name

    def run(self) -> None:
        """Tunes for ever."""
        while True:
            if not self.run_next():
                time.sleep(LOOK_SECONDS)

    def run_next(self) -> bool:
        """Tunes what the next job asks for; False if none waits."""
        if not (batch := self.jobs.claim(self.name, kind=TUNE)):
            return False
        job = batch[0]
        try:
            if self._tune(job):
                self.jobs.complete(self.name, job.id)
        except InputError as error:
            self.jobs.fail(self.name, job.id, "invalid_request", str(error))
        except Exception:
            traceback.print_exc()
            why = "the model could not be tuned; the server's log says why"
            self.jobs.fail(self.name, job.id, "internal_error", why)
        self.jobs.clear([job.id])
        return True

    def _tune(self, job: Job) -> bool:
        """Tunes a model; False if nobody wants it any more. Raises InputError if its model went, and RuntimeError."""
        folder, name = self.jobs.folder(job.id), job.settings["model"]
        if name not in self.models:
            raise InputError(f"the model {name} is no longer served")
        flags = write_data(folder, job, self.models[name], self.cards[name])
        with open(folder / "said.txt", "wb") as said:
            command = [sys.executable, "-c", CODE, str(os.getpid()), *flags]
            how: dict[str, Any] = dict(stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=own_environment())
            # In a session of its own: Control-C is for the server, which ends it, and lets it go on at the next start.
            process = subprocess.Popen(command, start_new_session=True, **how)
        try:
            if not self._watch(job, process):
                return False
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            raise RuntimeError((folder / "said.txt").read_text(errors="replace")[-4000:])
        report = [sys.executable, "-m", "vidjax.report", f"--workdir={folder / RUN}"]
        subprocess.run(report, stdin=subprocess.DEVNULL, capture_output=True, env=own_environment())
        return True

    def _watch(self, job: Job, process: subprocess.Popen) -> bool:
        """Notes how far a run is until it ends; False as soon as nobody wants it any more."""
        folder, shown = self.jobs.folder(job.id), 0
        while True:
            ended = process.poll() is not None
            if (found := newest_sample(folder)) and found[0] > shown:
                shown = found[0]
                with whole_file(folder / PREVIEW) as part:
                    part.write_bytes(preview_of(found[1]))
            steps = [step for step, _ in read_curve(folder)]
            if not self.jobs.advance(self.name, [job.id], steps[-1] if steps else 0, shown):
                return False
            if ended:
                return True
            time.sleep(LOOK_SECONDS)


def write_data(folder: Path, job: Job, place: str, card: Card) -> list[str]:
    """Writes what a job tunes on into its folder, and returns the flags of `vidjax.main`."""
    how, frames = job.settings, read_input(folder)
    if how["reference"] == "clip":
        write_mp4(folder / "clip.mp4", frames, how["fps"], CRF)
        keys = None if card.tunes == "videos" else "first_and_previous"
        values = {"data.video": folder / "clip.mp4", "data.stride": 1, "model.key_frames": keys}
        recipe = "tune_a_video"
    else:
        for number, picture in enumerate(frames):
            save_png(folder / "pictures" / f"{number}.png", picture)
        values, recipe = {"data.path": folder / "pictures", "finetune.prior.count": 0}, "dreambooth:lora"
    values |= {
        "pretrained": Path(place).resolve(),
        "prompt": how["prompt"],
        "seed": how["seed"],
        "data.frames": how["frames"],
        "data.size": (how["height"], how["width"]),
        "stages.tune.train.steps": how["steps"],
        "stages.tune.train.save_every": max(how["steps"] // 2, 1),
        "stages.tune.train.sample_every": max(how["steps"] // SAMPLES, 1),
        "sample.invert": False,
        "sample.prompts": how["samples"].replace(";", ","),
        "sample.sampler": how["sampler"],
        "sample.num_steps": card.num_steps,
        "sample.guidance_scale": how["guidance"],
        "sample.fps": how["fps"],
    }
    logged = f"--log_every={max(how['steps'] // POINTS, 1)}"
    given = [f"--config.{key}={value}" for key, value in values.items()]
    return [f"--config={recipe}", "--stage=tune", f"--workdir={(folder / RUN).resolve()}", logged, *given]


def read_curve(folder: Path) -> Sequence[tuple[int, float]]:
    """Reads (step, loss) of the run in a job's folder."""
    with contextlib.suppress(InputError, OSError):
        for file in (folder / RUN).glob("*/metrics.jsonl"):
            return [(entry["step"], entry["loss"]) for entry in read_metrics(file) if "loss" in entry]
    return []


def newest_sample(folder: Path) -> tuple[int, bytes] | None:
    """Finds the samples that the run in a job's folder drew last: the step, and an animated picture."""
    found = None
    for file in sorted((folder / RUN).glob("*/tensorboard/events.*")):
        for event in read_events(file):
            for value in event.summary.value:
                if value.tag == "samples":
                    found = event.step, value.image.encoded_image_string
    return found


def preview_of(picture: bytes) -> bytes:
    """Encodes an animated picture as WebP."""
    from PIL import Image, ImageSequence

    with Image.open(io.BytesIO(picture)) as image:
        frames = np.stack([np.asarray(each.convert("RGB")) for each in ImageSequence.Iterator(image)])
        seconds = image.info.get("duration", 100) / 1000
    return encode_animation(frames, 1 / seconds, "WEBP")


def read_events(file: Path) -> Iterator[Any]:
    """Yields the whole events of a TensorBoard file: a length, its checksum, the event, its checksum each."""
    from tensorboardX.proto import event_pb2

    make: Any = event_pb2
    content, place = file.read_bytes(), 0
    while place + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        if place + 16 + length > len(content):
            return
        yield make.Event.FromString(content[place + 12 : place + 12 + length])
        place += 16 + length
