"""A worker: the process that holds the models and makes one video, or one batch of videos, at a time."""

import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from vidjax.data.video_writing import write_mp4
from vidjax.errors import InputError
from vidjax.generation import watermark
from vidjax.generation.cascade import AnyGenerator, Cascade
from vidjax.generation.editing import mask_latents
from vidjax.generation.generator import Generator
from vidjax.generation.pretrained import load_generator
from vidjax.models.parameters import abstract_parameters
from vidjax.models.video_model import Codec
from vidjax.recipes.run import Run
from vidjax.runtime.storage import parse_path, whole_file
from vidjax.serving.files import MASK, PREVIEW, RUN, SHEET, THUMBNAIL, VIDEO
from vidjax.serving.jobs import TUNE, Job, Jobs
from vidjax.serving.previews import Previews
from vidjax.serving.requests import Card, together
from vidjax.serving.uploads import read_input
from vidjax.weights import pretrained

PREVIEW_SECONDS = 0.5  # between two of a video
IDLE_SECONDS = 0.1  # between two looks for jobs
MAX_PROGRAMS = 16  # compiled ones that are kept: one for each size of a video
ROW = 8  # frames side by side in a sheet
FOLDER_FILES = ("model_index.json", "unet")


class Stopped(Exception):
    """Nobody wants the videos in hand any more."""


def is_folder(path: str) -> bool:
    """Whether a model is in the layout of diffusers, or one file; otherwise it is a run."""
    return Path(path).is_file() or any((Path(path) / name).exists() for name in FOLDER_FILES)


def open_model(path: str, frames: int | None = None, **options: str | None) -> AnyGenerator:
    """Loads a run, or a folder in the layout of diffusers. Raises InputError."""
    place = Path(path)
    if is_folder(path):
        generator = load_generator(place, frames, **options)
        if generator.refinement:
            raise InputError(f"--model={path}: it makes finished videos larger; that is vidjax.sample --refine")
    else:
        generator = Run(parse_path(path, "--model")).generator()
    if "picture" in generator.embedder_names:
        raise InputError(f"--model={path}: it moves pictures, which is not served yet; vidjax.sample --image does")
    return generator


def find_tuning(path: str) -> str:
    """Tells whether a folder may be tuned, as a model of "images" or of "videos"; "" for runs, and what reads no
    text."""
    if not is_folder(path):
        return ""
    loaded = pretrained.load(path, weights=False)
    if loaded.tokenize is None:
        return ""
    return "videos" if any("temp" in place for place in abstract_parameters(loaded.model)) else "images"


def make_card(name: str, generator: AnyGenerator, tunes: str = "") -> Card:
    """Describes a model; `tunes` as `find_tuning` tells it."""
    how, names = generator.defaults, generator.embedder_names
    last = generator.last if isinstance(generator, Cascade) else generator
    return Card(
        name=name,
        size=generator.size,
        fps=how.fps,
        strides=last.codec.autoencoder.strides if isinstance(last.codec, Codec) else (1, 1, 1),
        conditions=names,
        classes=generator.model.embedders["label"].classes if "label" in names else 0,
        sampler=how.sampler,
        num_steps=how.num_steps,
        guidance_scale=how.guidance_scale,
        stages=len(generator.generators) if isinstance(generator, Cascade) else 1,
        moves=isinstance(generator, Generator) and how.chunk is None and generator.channels == 3,
        alone=isinstance(generator, Cascade) or how.eta > 0,
        created=int(time.time()),
        strength=how.strength,
        tunes=tunes,
    )


class Worker:
    """Takes jobs in turn and makes their videos with `generators`.

    A batch always has `batch` places, filled up with copies: so a video does not depend on what else was asked for.
    """

    def __init__(self, jobs: Jobs, generators: Mapping[str, AnyGenerator], name: str, batch: int = 1):
        self.jobs, self.generators, self.name, self.batch = jobs, generators, name, batch
        self.previews = {name: Previews(each.codec is not None) for name, each in generators.items()}
        self._programs: set[tuple] = set()
        self._tuned: tuple[str, AnyGenerator, Previews] | None = None  # the one that was asked for last

    def run(self) -> None:
        """Makes videos for ever."""
        while True:
            if not self.run_next():
                time.sleep(IDLE_SECONDS)

    def run_next(self) -> bool:
        """Makes the videos of the next jobs; False if none waits."""
        if not (batch := self.jobs.claim(self.name, self.batch)):
            return False
        hand = Hand(self.jobs, self.name, batch)
        try:
            self._make(hand)
        except Stopped:
            pass
        except InputError as error:
            hand.fail("invalid_request", str(error))
        except Exception:
            if hand.wanted:
                traceback.print_exc()
                hand.fail("internal_error", "the server could not make this video; its log says why")
        self.jobs.clear([job.id for job in batch])
        return True

    def _make(self, hand: "Hand") -> None:
        batch, how = hand.batch, hand.batch[0].settings
        generator, hand.previews = self._find(how["model"])
        latents = self._sample(generator, hand)
        if not hand.wanted:
            raise Stopped
        videos = generator.decode(latents)
        for job, each, video in zip(batch, np.asarray(latents), videos):
            if job.id in hand.wanted:
                hand.previews.fit(each, video)
                write_results(self.jobs.folder(job.id), watermark.embed(video), how["fps"])
                self.jobs.complete(self.name, job.id)

    def _find(self, model: str) -> tuple[AnyGenerator, Previews]:
        """Returns a model: one of the server's, or one that a user has tuned. Raises InputError if it is gone."""
        if model in self.generators:
            return self.generators[model], self.previews[model]
        if self._tuned is None or self._tuned[0] != model or not (self.jobs.folder(model) / RUN).is_dir():
            self._tuned = None  # two would take twice the memory
            if not model.startswith(f"{TUNE}_") or not (self.jobs.folder(model) / RUN).is_dir():
                raise InputError(f"the model {model} is no longer served")
            generator = Run(self.jobs.folder(model) / RUN).generator()
            self._tuned = model, generator, Previews(generator.codec is not None)
        return self._tuned[1:]

    def _sample(self, generator: AnyGenerator, hand: "Hand") -> Float[Array, "b t h w c"]:
        """Samples the latents of the jobs in hand, in a batch that is filled up."""
        how = hand.batch[0].settings
        fill = self.batch - len(hand.batch) if together(how) else 0
        jobs = [*hand.batch, *[hand.batch[-1]] * fill]
        frames, size = how["frames"], (how["height"], how["width"])
        options = dict(
            frames=frames,
            size=size,
            seed=how["seed"],
            num_steps=how["steps"],
            guidance_scale=how["guidance"],
            negative_prompt=how["negative_prompt"],
            sampler=how["sampler"],
            eta=generator.defaults.eta if how["sampler"] == generator.defaults.sampler else 0.0,
        )
        if isinstance(generator, Generator):
            if len(jobs) > 1:
                noise = [generator.noise(1, frames, size, job.settings["seed"]) for job in jobs]
                options["noise"] = np.concatenate(noise)
            options |= start_from(generator, [self.jobs.folder(job.id) for job in jobs], how, hand)
        self._forget(tuple(str(how[key]) for key in ("model", "frames", "height", "width", "sampler", "reference")))
        prompts = [job.settings["prompt"] if job.settings["label"] is None else job.settings["label"] for job in jobs]
        return generator.latents(prompts, progress=hand.report, look=hand.look, **options)[: len(hand.batch)]

    def _forget(self, program: tuple) -> None:
        """Drops compiled programs once there are too many sizes."""
        if program not in self._programs and len(self._programs) >= MAX_PROGRAMS:
            jax.clear_caches()
            self._programs.clear()
        self._programs.add(program)

    def warm_up(self) -> None:
        """Compiles what each model's usual video needs, and learns the colours of its latents."""
        for name, generator in self.generators.items():
            nothing = -1 if "label" in generator.embedder_names else ""
            look = lambda done, latents: None
            steps = dict(num_steps=min(4, generator.defaults.num_steps), progress=look_away, look=look)
            latents = generator.latents([nothing] * self.batch, **steps)
            self.previews[name].fit(np.asarray(latents)[0], generator.decode(latents)[0])


def look_away(done: object) -> None:
    """Reports nothing."""


class Hand:
    """The jobs that a worker makes now: notes how far they are, and stops when nobody wants them."""

    def __init__(self, jobs: Jobs, worker: str, batch: Sequence[Job]):
        self.jobs, self.worker, self.batch, self.previews = jobs, worker, batch, Previews(False)
        self.wanted = {job.id for job in batch}
        self.before = 0  # steps of what comes before the sampler
        self._preview, self._shown = 0, 0.0

    def report(self, done: object) -> None:
        """Notes the number of steps done. Raises Stopped if no job is wanted any more."""
        self.wanted &= self.jobs.advance(self.worker, sorted(self.wanted), self.before + int(done), self._preview)
        if not self.wanted:
            raise Stopped

    def look(self, done: object, latents: object) -> None:
        """Writes what the videos look like by now, not too often."""
        if time.monotonic() - self._shown < PREVIEW_SECONDS:
            return
        how = self.batch[0].settings
        seconds = how["frames"] / how["fps"]
        for job, each in zip(self.batch, np.asarray(latents)):
            if job.id in self.wanted and (content := self.previews.encode(each, seconds)):
                with whole_file(self.jobs.folder(job.id) / PREVIEW) as part:
                    part.write_bytes(content)
                self._preview = self.before + int(done)
        self._shown = time.monotonic()

    def fail(self, code: str, message: str) -> None:
        """Ends the jobs in hand that are still wanted."""
        for id in self.wanted:
            self.jobs.fail(self.worker, id, code, message)


def start_from(generator: Generator, folders: Sequence[Path], how: Mapping, hand: Hand) -> dict:
    """What `Generator.latents` takes so that a picture is the first frame, or a clip what the video begins as, or what
    an edit changes. The steps of an inversion are noted in `hand`."""
    if not how["reference"]:
        return {}
    inputs = np.stack([read_input(folder) for folder in folders])
    if how["reference"] == "edit":
        return start_edit(generator, generator.encode(inputs), folders[0], how, hand)
    if how["reference"] == "clip":
        return dict(begin=generator.encode(inputs), strength=how["strength"])
    stride = generator.codec.autoencoder.strides[0] if isinstance(generator.codec, Codec) else 1
    t, h, w, c = generator.latent_shape(how["frames"], (how["height"], how["width"]))
    latents = np.zeros((len(inputs), t, h, w, c), np.float32)
    latents[:, :1] = generator.encode(inputs.repeat(stride, 1))
    return dict(known=(latents, (np.arange(t) == 0).astype(np.float32)))


def start_edit(
    generator: Generator, latents: Float[np.ndarray, "b t h w c"], folder: Path, how: Mapping, hand: Hand
) -> dict:
    """What `Generator.latents` takes to edit a clip, as `generation.editing.edits` does: it starts from the clip under
    noise, or at strength 1 from the clip's inversion, and stays what it is outside of the mask in `folder`."""
    start: dict = {}
    if how["strength"] < 1:
        start |= dict(begin=latents, strength=how["strength"])
    else:
        nothing = -1 if "label" in generator.embedder_names else ""
        under = [nothing] * len(latents)
        start["noise"] = generator.invert(latents, under, num_steps=how["steps"], progress=hand.report)
        hand.before = how["steps"]
    if (folder / MASK).is_file():
        start["kept"] = latents, mask_latents(read_input(folder, MASK), latents.shape[1:4])
    return start


def write_results(folder: Path, video: UInt8[np.ndarray, "t h w c"], fps: float) -> None:
    """Writes a video, a picture of its middle, and a sheet with all its frames."""
    from PIL import Image

    write_mp4(folder / VIDEO, video, fps)
    colours = np.broadcast_to(video, (*video.shape[:3], 3))
    rows = [colours[i : i + ROW] for i in range(0, len(colours), ROW)]
    full = [np.concatenate([*row, *[np.zeros_like(row[0])] * (min(ROW, len(video)) - len(row))], 1) for row in rows]
    pictures = {THUMBNAIL: colours[len(colours) // 2], SHEET: np.concatenate(full)}
    for name, picture in pictures.items():
        with whole_file(folder / name) as part:
            Image.fromarray(np.ascontiguousarray(picture)).save(part, quality=90)


def quiet_stops() -> None:
    """Keeps JAX from printing a traceback for each video that is cancelled."""
    logging.getLogger("jax._src.debugging").setLevel(logging.CRITICAL)
