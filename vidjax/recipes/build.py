"""From a config to a stage that can be trained, and all that can be wrong with it before it runs."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from vidjax import settings
from vidjax.data.config import DataConfig
from vidjax.data.pipeline import Dataset
from vidjax.errors import InputError, check_range
from vidjax.generation import cascade
from vidjax.generation.generator import SampleConfig
from vidjax.models.keys import OneKey
from vidjax.models.lowres import LowresEmbedder
from vidjax.models.parameters import abstract_parameters, split
from vidjax.recipes.autoencoder import autoencoder
from vidjax.recipes.config import check_names, default_settings, stage_names, tunes
from vidjax.recipes.diffusion import diffusion
from vidjax.recipes.frozen import frozen_parts
from vidjax.recipes.latent_flow import flow_autoencoder
from vidjax.recipes.moving import moving
from vidjax.recipes.tuning import tuning
from vidjax.runtime import sharding
from vidjax.runtime.processes import say
from vidjax.runtime.storage import AnyPath
from vidjax.training import objectives, provenance
from vidjax.training.checkpoint import Checkpoints
from vidjax.training.encoded import encode_once
from vidjax.training.optimizer import make_optimizer
from vidjax.training.stage import Stage, TrainConfig, abstract_batches, abstract_loss, encoded_shapes, fit
from vidjax.weights import pretrained


def build(config: Mapping[str, Any], name: str, workdir: AnyPath, max_steps: int | None = None) -> Stage:
    """Makes stage `name` of a run in `workdir`. Raises InputError for whatever in the config does not fit."""
    section = settings.stage_settings(config, name)
    if low := cascade.below(section):
        check_below(section, settings.stage_settings(config, low), name)
    check_names(section)
    train = settings.construct(TrainConfig, section["train"], "train")
    optimizer = settings.construct(make_optimizer, section.get("optimizer"), "optimizer", steps=train.steps)
    if max_steps is not None:  # the learning rate follows the full length, so that a capped run can go on later
        train = dataclasses.replace(train, steps=min(train.steps, max_steps))
    kinds: dict[str, Any] = dict.fromkeys(objectives.OBJECTIVES, diffusion)
    kinds |= dict(autoencoder=autoencoder, flow_autoencoder=flow_autoencoder)
    make = settings.choose(section.get("objective", name), kinds, "objective")
    if tunes(section):
        tune = moving if pretrained.moves_pictures(section["pretrained"]) else tuning
        make = partial(tune, source=source_of(section, config, workdir))
    seed = section.get("seed", 0)
    check_range("config.", 0, 2**63 - 1, seed=seed)
    return make(
        section,
        workdir,
        name=name,
        folder=workdir / name,
        train=train,
        mesh=section.get("mesh", {}),
        seed=seed,
        data=settings.construct(DataConfig, section["data"], "data"),
        optimizer=optimizer,
        fps=settings.construct(SampleConfig, section.get("sample"), "sample").fps,
        settings=provenance.settings_of(section),
        parent=workdir / section["source"] if section.get("source") else None,
    )


def source_of(section: Mapping[str, Any], config: Mapping[str, Any], workdir: AnyPath) -> Stage | None:
    """Makes the stage that one with these settings goes on from; None if it goes on from none."""
    return build(config, section["source"], workdir) if section.get("source") else None


def check_below(section: Mapping[str, Any], low: Mapping[str, Any], name: str) -> None:
    """Raises InputError unless the videos that stage `name` makes larger are those that the stage `low` makes."""
    options = section["conditioning"]["lowres"]
    embedder = settings.construct(LowresEmbedder, options, "conditioning.lowres", rngs=OneKey())
    own, below = (settings.construct(DataConfig, each["data"], "data") for each in (section, low))
    cascade.check(name, embedder, own, below)


def check(stage: Stage, allow_changes: bool = False) -> None:
    """Raises InputError for whatever is wrong with devices, batch, data or sizes; compiles nothing."""
    mesh = sharding.make_mesh(**stage.mesh)
    dataset = stage.dataset()
    provenance.check_data(stage.folder, dataset, allow_changes)
    stage = fit(stage, dataset)
    for note in stage.notes:
        say(f"{stage.name}: {note}")
    if isinstance(dataset, Dataset) and dataset.table:
        say(f"{stage.name}: trains on these shapes, each batch on one\n{dataset.table}")
    if stage.train.validate_every and stage.validate is None:
        raise InputError(
            f"train.validate_every={stage.train.validate_every}: stage {stage.name} is not validated, only diffusion "
            "stages that train all their data are; leave it out"
        )
    sharding.check_batch(mesh, stage.train.batch_size, stage.train.accumulate)
    loss, state = abstract_loss(stage)
    with jax.set_mesh(mesh):
        for batch in abstract_batches(stage, dataset):
            jax.eval_shape(loss, state, batch)
    params, _ = split(abstract_parameters(state), stage.trainable)
    jax.eval_shape(stage.optimizer.init, params)
    if (stage.folder / "checkpoints").is_dir():
        with Checkpoints(stage.folder / "checkpoints", read_only=True) as checkpoints:
            if checkpoints.latest() is not None:
                checkpoints.check(params)


def check_unchanged(config: Mapping[str, Any], workdir: AnyPath, allow_changes: bool = False) -> None:
    """Raises InputError if a stage of the run, also one that is not to be trained now, has other settings there."""
    for name in stage_names(config):
        made = provenance.settings_of(settings.stage_settings(config, name))
        provenance.check_settings(workdir / name, made, allow_changes, default_settings())


def largest(stage: Stage) -> Stage:
    """Returns a stage of several buckets as one of the largest shape that they may have, and says so."""
    if not stage.data.buckets:
        return stage
    frames, (height, width) = stage.data.frames, stage.data.hw
    say(f"{stage.name}: figures are of the largest shape, {frames} frames of {height}x{width}")
    return dataclasses.replace(stage, data=dataclasses.replace(stage.data, buckets=0))


def example_batch(config: Mapping[str, Any], stage: Stage) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch, from the config alone: the data need not be there."""
    section = settings.stage_settings(config, stage.name)
    size, data = stage.train.batch_size, stage.data
    channels = section.get("model", {}).get("in_channels", 3)
    shapes = {"video": ((size, data.frames, *data.hw, channels), np.uint8), "label": ((size,), np.int32)}
    if data.images:
        shapes["images"] = ((size, data.images, *data.hw, channels), np.uint8)
    if stage.tokenize:
        shapes["tokens"] = ((size, len(stage.tokenize(""))), np.int32)
    batch = {key: jax.ShapeDtypeStruct(*shape) for key, shape in shapes.items()}
    if data.latents:
        graphdef, state = frozen_parts(section, stage.folder.parent).abstract_encoder()
        encode = lambda state, batch: encode_once(made := nnx.merge(graphdef, state), batch, made.text is not None)
        return jax.eval_shape(encode, state, batch)
    return encoded_shapes(stage, batch)
