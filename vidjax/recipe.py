"""From a config to the parts of one training stage. The only code that sees a whole config; everything bad in it fails here."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vidjax import settings
from vidjax.checkpoint import Checkpoints, read_json
from vidjax.conditioning import EMBEDDERS
from vidjax.data.pipeline import DataConfig, Dataset, make_dataset
from vidjax.diffusion.schedule import SCHEDULES, Schedule
from vidjax.errors import InputError
from vidjax.models.autoencoder import Autoencoder, AutoencoderConfig
from vidjax.models.text_encoder import byte_ids
from vidjax.models.unet import UNetConfig
from vidjax.objectives import OBJECTIVES
from vidjax.optim import make_optimizer
from vidjax.train_state import Params, abstract_parameters, merge, parameters
from vidjax.train_step import Objective
from vidjax.video_model import Codec, VideoModel


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how large, how precise. `dtype` is what the networks compute in; parameters are fp32."""

    steps: int
    batch_size: int = 8
    accumulate: int = 1
    ema: float = 0.9999
    dtype: str = "float32"
    remat: str = "none"
    log_every: int = 10
    save_every: int = 1000
    keep: int = 2
    keep_every: int | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
    """What the training loop needs to know of one stage of a recipe."""

    name: str
    folder: Path
    train: TrainConfig
    mesh: dict[str, int]
    seed: int
    data: DataConfig
    tokenize: Callable[[str], np.ndarray] | None
    init: Callable[[nnx.Rngs], nnx.Module]
    objective: Objective
    optimizer: optax.GradientTransformation
    trainable: Callable[[str], bool] = lambda path: True
    loaded: Callable[[], Params] = dict  # parameters that do not start at random: of an earlier stage, or made from the data
    finish: Callable[[Any, Dataset], None] = lambda model, dataset: None  # after the last step, with the averaged model

    def dataset(self) -> Dataset:
        return make_dataset(self.data, seed=self.seed, tokenize=self.tokenize)


def stage_names(config: Mapping[str, Any]) -> list[str]:
    return list(config["stages"])


def build(config: Mapping[str, Any], name: str, workdir: Path, max_steps: int | None = None) -> Stage:
    """The parts of stage `name`. Raises InputError for whatever in the config does not fit."""
    section = settings.stage_settings(config, name)
    unknown = set(section) - {"seed", "data", "autoencoder", "model", "conditioning", "diffusion", "optimizer", "mesh", "train"}
    unknown -= {"sample", "objective", "source", "loss"}
    if unknown:
        raise InputError(f"config.{min(unknown)} does not exist{settings.near_match(min(unknown), section.keys() - unknown)}")
    train = settings.construct(TrainConfig, section["train"], "train")
    if max_steps is not None:
        train = dataclasses.replace(train, steps=min(train.steps, max_steps))
    optimizer = settings.construct(make_optimizer, section.get("optimizer"), "optimizer", steps=train.steps)
    make = settings.choose(section.get("objective", name), {"autoencoder": _autoencoder, "diffusion": _diffusion}, "objective")
    common = Stage(
        name=name,
        folder=workdir / name,
        train=train,
        mesh=section.get("mesh", {}),
        seed=section.get("seed", 0),
        data=settings.construct(DataConfig, section["data"], "data"),
        tokenize=tokenizer(section),
        init=lambda rngs: nnx.Module(),
        objective=lambda model, batch, draws: (jnp.zeros(()), {}),
        optimizer=optimizer,
    )
    return make(common, section, workdir)


def tokenizer(section: Mapping[str, Any]) -> Callable[[str], np.ndarray] | None:
    text = section.get("conditioning", {}).get("text")
    return partial(byte_ids, length=text.get("length", 64)) if text else None


def _autoencoder(common: Stage, section: Mapping[str, Any], workdir: Path) -> Stage:
    config = settings.construct(AutoencoderConfig, section["autoencoder"], "autoencoder")
    objective = partial_objective("autoencoder", section)

    def finish(model: Autoencoder, dataset: Dataset) -> None:
        shift, scale = latent_statistics(model, dataset)
        settings.write_json(common.folder / "latents.json", {"shift": shift, "scale": scale})

    return dataclasses.replace(
        common,
        tokenize=None,
        init=lambda rngs: Autoencoder(config, rngs=rngs),
        objective=objective,
        loaded=lambda: Autoencoder.from_data(config, common.dataset()),
        finish=finish,
    )


def _diffusion(common: Stage, section: Mapping[str, Any], workdir: Path) -> Stage:
    schedule, prediction = process(section)
    objective = partial_objective("diffusion", section, schedule=schedule, prediction=prediction)
    codec_folder = workdir / section["source"] if section.get("source") else None

    def loaded() -> Params:
        if codec_folder is None:
            return {}
        codec = abstract_codec(section)
        assert codec is not None
        params = abstract_parameters(codec.autoencoder)
        with Checkpoints(codec_folder / "checkpoints") as checkpoints:
            read = checkpoints.restore_ema(jax.tree.map(_here, params))
        return {f"codec.autoencoder.{path}": value for path, value in read.items()}

    return dataclasses.replace(
        common,
        init=lambda rngs: video_model(section, codec_folder, rngs=rngs),
        objective=objective,
        trainable=lambda path: not path.startswith("codec."),
        loaded=loaded,
    )
