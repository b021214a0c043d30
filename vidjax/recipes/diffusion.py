"""Stages that train a diffusion model from a random start, on pixels or on the latents of a frozen autoencoder."""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from flax import nnx

from vidjax import settings
from vidjax.data.latents import Latents
from vidjax.data.pipeline import DataConfig, Dataset
from vidjax.data.transforms import to_uint8, to_unit
from vidjax.diffusion.schedule import SCHEDULES, Schedule
from vidjax.errors import InputError
from vidjax.generation import cascade
from vidjax.generation.generator import Generator, SampleConfig
from vidjax.generation.prompts import what_to_ask
from vidjax.models.flow_autoencoder import FlowCodec
from vidjax.models.flow_unet import FlowUNetConfig
from vidjax.models.keys import OneKey
from vidjax.models.parameters import Params
from vidjax.models.stored import StoredMoments
from vidjax.models.unet import UNetConfig
from vidjax.models.video_model import VideoModel
from vidjax.recipes import latent_flow
from vidjax.recipes.frozen import FrozenParts, frozen_parts
from vidjax.runtime import sharding
from vidjax.runtime.storage import AnyPath
from vidjax.training import objectives
from vidjax.training.stage import PREVIEWED, Stage, drawn
from vidjax.training.state import TrainState
from vidjax.training.validation import by_noise_level
from vidjax.weights.components import EMPTY

UNETS: dict[str, Any] = {"unet": UNetConfig, "flow_unet": FlowUNetConfig}  # by config.model.network


def diffusion(section: Mapping[str, Any], workdir: AnyPath, **common: Any) -> Stage:
    """Makes a diffusion stage; `common` are the fields of Stage that every stage has. Raises InputError."""
    schedule, prediction = process(section)
    frozen = frozen_parts(section, workdir)
    if common["data"].buckets:
        model = nnx.eval_shape(lambda: video_model(section, frozen, rngs=OneKey()))
        common["data"] = common["data"].in_multiples(*multiples(model, frozen.codec(OneKey())))

    @cache
    def sampler(graphdef: nnx.GraphDef) -> Generator:
        return make_generator(section, frozen, common["data"], graphdef, {})

    def preview(state: TrainState, dataset: Dataset) -> np.ndarray:
        """Samples of the first prompts; where the stage makes videos larger or moves pictures, of the first clips."""
        generator = sampler(state.graphdef)
        generator.params = {**state.ema, **state.frozen}
        prompts = what_to_ask(generator, dataset)[0][:PREVIEWED]
        if "picture" in generator.embedder_names:
            return latent_flow.of_clips(generator, dataset, PREVIEWED)[0]
        if "lowres" not in generator.embedder_names:
            return generator(prompts)
        clips = np.concatenate(dataset.windows("train", per_clip=1, clips=range(len(prompts))))
        low = np.asarray(to_uint8(cascade.embedder(generator).shrink(to_unit(clips))))
        return generator(prompts[: len(low)], lowres=low)

    def loaded(state: TrainState, dataset: Dataset | Latents) -> Params:
        stored = {EMPTY: dataset.null["tokens"]} if EMPTY in state.frozen and isinstance(dataset, Latents) else {}
        found = {**frozen.parameters(state.frozen), **stored}
        if "flow" in section and (file := section.get("pretrained")):
            found |= latent_flow.released_diffusion(state.params, file, f"config.stages.{common['name']}.pretrained")
        return found

    loss = objectives.OBJECTIVES[section.get("objective", common["name"])]
    objective = settings.bind(loss, section.get("loss"), "loss", schedule=schedule, prediction=prediction)
    return Stage(
        start=drawn(lambda rngs: video_model(section, frozen, rngs=rngs), common["seed"], common["mesh"]),
        objective=objective,
        validate=by_noise_level(objective, schedule, common["train"].dtype),
        tokenize=frozen.tokenize,
        trainable=lambda path: not path.startswith(frozen.prefixes),
        loaded=loaded,
        preview=None if common["data"].latents else preview,
        encoder=frozen.encoder if frozen.in_latents and "flow" not in section else None,
        **common,
    )


def multiples(model: VideoModel, codec: Any) -> tuple[int, int]:
    """Returns what a model needs the frames, and the rows and columns, of its videos to be multiples of, so that every
    map of its U-Net, and of a flow autoencoder, halves evenly. `codec` makes its latents, if anything does."""
    unet, strides = model.unet.config, codec.autoencoder.strides if codec else (1, 1, 1)
    time, space = strides[0], math.lcm(*strides[1:]) * unet.patch * 2 ** (len(unet.channels) - 1)
    if isinstance(codec, FlowCodec):
        space = math.lcm(space, codec.autoencoder.multiple)
    low = model.embedders.get("lowres")
    return (math.lcm(time, low.time_factor), math.lcm(space, low.space_factor)) if low else (time, space)


def process(section: Mapping[str, Any]) -> tuple[Schedule, str]:
    """Returns the diffusion's schedule and what the network predicts. Raises InputError."""
    options = dict(section["diffusion"])
    prediction, name = options.pop("prediction", "eps"), options.pop("schedule", "linear")
    make = settings.choose(name, SCHEDULES, "config.diffusion.schedule")
    return settings.construct(make, options, "diffusion"), prediction


def video_model(section: Mapping[str, Any], frozen: FrozenParts, *, rngs: nnx.Rngs) -> VideoModel:
    """Makes the network at its random start; widths that follow from other parts are filled in. Raises InputError."""
    masked = section.get("loss", {}).get("frame_masks") is not None
    kinds = frozen.embedders
    embedders = {
        name: settings.construct(
            settings.choose(name, kinds, "config.conditioning"), options, f"conditioning.{name}", rngs=rngs
        )
        for name, options in section.get("conditioning", {}).items()
    }
    model = dict(section["model"])
    codec: Any = frozen.codec(rngs)
    more, concat = frozen.beside(codec)
    embedders |= more
    channels = codec.autoencoder.latent_channels if codec else model.pop("in_channels", 3)
    if codec and section["data"].get("images") and not codec.per_frame("encoder"):
        raise InputError(
            f"config.data.images={section['data']['images']}: stills want an autoencoder that takes each frame by "
            "itself, this one looks over time; set it to 0"
        )
    if isinstance(codec, FlowCodec) and (tile := section.get("sample", {}).get("tile")):
        raise InputError(
            f"config.sample.tile={tile}: what moves is found in whole pictures and warped across them; leave it out, "
            "config.sample.decode_frames bounds the memory"
        )
    if "lowres" in embedders and embedders["lowres"].residual and process(section)[1] != "x0":
        raise InputError(
            "config.conditioning.lowres.residual=True adds to a video: set config.diffusion.prediction=x0, not "
            f"{process(section)[1]}"
        )
    if "lowres" in embedders and codec:
        raise InputError("config.conditioning.lowres is a video of pixels: a stage of latents cannot have it")
    if codec and section["data"].get("latents"):
        codec = StoredMoments(codec.shift, codec.scale)
    kind = settings.choose(model.pop("network", "unet"), UNETS, "config.model.network")
    tokens = dict(tokens_dim=next((e.tokens_dim for e in embedders.values() if e.tokens_dim), None))
    unet = settings.construct(
        kind,
        model,
        "model",
        in_channels=channels + masked + channels * ("lowres" in embedders) + concat,
        out_channels=channels,
        vector_dim=sum(e.vector_dim or 0 for e in embedders.values()) or None,
        **(tokens if kind is UNetConfig else {}),
    )
    return VideoModel(unet, embedders, codec, masked=masked, remat=section["train"].get("remat", "none"), rngs=rngs)


def make_generator(
    section: Mapping[str, Any], frozen: FrozenParts, data: DataConfig, graphdef: nnx.GraphDef, params: Params
) -> Generator:
    """Makes the generator of a stage's model with these parameters."""
    schedule, prediction = process(section)
    every = section.get("loss", {}).get("every", 1)
    return Generator(
        graphdef,
        params,
        schedule,
        prediction,
        frozen.tokenize,
        (-(-data.frames // every), *data.hw),
        3 if frozen.in_latents else section["model"].get("in_channels", 3),
        settings.construct(SampleConfig, section.get("sample"), "sample"),
        sharding.fitting_mesh(**section.get("mesh", {})),
        section["train"].get("dtype"),
    )
