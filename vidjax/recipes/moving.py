"""Stages that tune a model that moves a picture, by itself (Stable Video Diffusion) or as a text says (I2VGen-XL): its
weights from a folder, and clips whose first frames are the pictures."""

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from flax import nnx

from vidjax import settings
from vidjax.data.pipeline import DataConfig, Dataset
from vidjax.diffusion import schedule as schedules
from vidjax.errors import InputError, check_range
from vidjax.generation.generator import Generator
from vidjax.generation.output import write_index, write_samples
from vidjax.models.keys import Keys
from vidjax.models.video_model import VideoModel
from vidjax.recipes.diffusion import multiples
from vidjax.recipes.tuning import fitted, generator_of, tuned_model
from vidjax.runtime.processes import lead
from vidjax.runtime.storage import AnyPath
from vidjax.training import objectives
from vidjax.training.encoded import first_windows
from vidjax.training.stage import PREVIEWED, Stage
from vidjax.training.state import TrainState
from vidjax.training.strategies import strategy
from vidjax.weights import pretrained


def moving(section: Mapping[str, Any], workdir: AnyPath, *, source: Stage | None = None, **common: Any) -> Stage:
    """Makes a stage that tunes `config.pretrained`, or goes on from the stage `source`, whose parameters it adds to.

    Videos and pictures are encoded at every step, as the pictures are under new noise each time. Raises InputError for
    what in the folder or the config does not fit.
    """
    folder, remat = section["pretrained"], section["train"].get("remat", "none")
    known = pretrained.outline(folder, remat=remat)
    check(section, common["data"], reads=known.tokenize is not None)
    elsewhere = ("encode_once", "source_weight", "drop")  # the second for samples alone
    options = {key: value for key, value in section.get("finetune", {}).items() if key not in elsewhere}
    tune = strategy(options.pop("strategy", "temporal"), **options)
    how = section.get("conditioning", {}).get("picture")
    kind = known.model.picture.Training
    training = settings.construct(kind, how, "conditioning.picture", fps=float(common["data"].fps))
    schedule = known.schedule
    if levels := section.get("diffusion"):
        if schedule.steps:
            raise InputError("config.diffusion: this model has the noise levels of its folder; leave it out")
        ends = dict(sigma_min=float(np.exp(-schedule.span[1] / 2)), sigma_max=schedule.noisiest)
        schedule = settings.construct(schedules.edm, {**ends, **levels}, "diffusion")

    def start(weights: bool) -> tuple[None, VideoModel]:
        if source is not None:
            model = tuned_model(source, weights)
        else:
            model = pretrained.load(folder, remat=remat).model if weights else nnx.clone(known.model)
        model.picture.training = training
        if getattr(training, "twice", None) is not None:
            model.picture.twice = training.twice
        if known.tokenize is not None:
            model.text.drop = section.get("finetune", {}).get("drop") or 0.0
        tune.surgery(model, Keys(common["seed"]))
        return None, model

    if section.get("prompt"):
        common["data"] = dataclasses.replace(common["data"], caption=section["prompt"])
    common["data"], note = fitted(common["data"].in_multiples(*multiples(known.model, known.model.codec)))
    if common["data"].fps is None:
        raise InputError(f"{note}; but this model is told frames per second: lower config.data.frames or data.heldout")
    common |= dict(notes=(note,) if note else (), listed=True)
    loss = objectives.OBJECTIVES[section.get("objective", common["name"])]
    objective = settings.bind(loss, section.get("loss"), "loss", schedule=schedule, prediction=known.prediction)

    @cache
    def sampler(graphdef: nnx.GraphDef) -> Generator:
        return generator_of(section, known, common["data"], graphdef, {})

    def preview(state: TrainState, dataset: Dataset) -> np.ndarray:
        """Videos of the first frames of the first clips."""
        generator = sampler(state.graphdef)
        generator.params = {**state.ema, **state.frozen}
        clips, texts = first_windows(dataset)
        pictures = np.stack([clip[0] for clip in clips[:PREVIEWED]])
        return generator([prompt_of(generator, text) for text in texts[:PREVIEWED]], pictures=pictures)

    more = dict(tokenize=known.tokenize, trainable=tune.trainable)
    return Stage(start=start, preview=preview, objective=objective, **more, **common)


def prompt_of(generator: Generator, text: str) -> str:
    """Returns the caption for a model that reads it."""
    return text if generator.tokenize else ""


def check(section: Mapping[str, Any], data: DataConfig, reads: bool) -> None:
    """Raises InputError for settings that such a model, which `reads` text or not, does not know."""
    tune = section.get("finetune", {})
    if data.fps is None:
        raise InputError("config.data.fps is missing: the model is told the frames per second of its clips, such as 7")
    if data.images or section.get("loss", {}).get("own_images"):
        raise InputError("config.data.images and config.loss.own_images are stills, this model moves: set both to 0")
    if tune.get("encode_once"):
        raise InputError("config.finetune.encode_once: pictures are under new noise at every step; leave it out")
    check_range("config.finetune.", 0, 1, drop=tune.get("drop"))
    if tune.get("drop") and not reads:
        raise InputError("config.finetune.drop is of captions; pictures are hidden by config.conditioning.picture.drop")
    for name in ("finetune.prior", "model", "motion_adapter"):
        if section.get(name) or (name == "finetune.prior" and tune.get("prior")):
            raise InputError(f"config.{name} is of image models, this one moves pictures; leave it out")
    if section.get("prompt") and not reads:
        raise InputError("config.prompt: this model reads no text, it moves pictures; leave it out")
    if section.get("objective") == "autoencoder":
        raise InputError("config.objective=autoencoder is of image models; this one moves pictures")


def show(workdir: AnyPath, generator: Generator, clips: list[np.ndarray], names: list[str]) -> dict[str, Any]:
    """Writes videos of the first frames of the first clips into `workdir`/samples; returns entries for summary.json."""
    how, clips = generator.defaults, clips[:PREVIEWED]
    videos = [generator([prompt_of(generator, name)], pictures=clip[:1]) for clip, name in zip(clips, names)]
    if not lead():
        return {}
    about = {"model": str(workdir), **dataclasses.asdict(how)}
    entries = write_samples(
        workdir / "samples", [name or "clip" for name in names[:PREVIEWED]], videos, how.fps, about=about
    )
    write_index(workdir / "samples", entries)
    return {"samples": entries}
