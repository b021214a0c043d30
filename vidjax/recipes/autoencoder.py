"""Stages that train an autoencoder, alone or against discriminators, and measure its latents."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidjax import settings
from vidjax.data.pipeline import Dataset
from vidjax.data.transforms import to_uint8, to_unit
from vidjax.models.autoencoder import Autoencoder, AutoencoderConfig
from vidjax.models.discriminator import DiscriminatorConfig, Discriminators
from vidjax.models.keys import OneKey
from vidjax.models.parameters import Params, abstract_parameters, parameters
from vidjax.models.patch_pca import patch_pca
from vidjax.models.vgg import LPIPS
from vidjax.models.video_model import latent_statistics
from vidjax.runtime import sharding
from vidjax.runtime.compiling import jit
from vidjax.runtime.processes import on_first_process, run_over
from vidjax.runtime.storage import AnyPath, write_json
from vidjax.training import adversarial, objectives
from vidjax.training.stage import PREVIEWED, Stage, drawn
from vidjax.training.state import TrainState
from vidjax.weights.lpips import read_lpips

CLIPS_MEASURED = 256  # from which the statistics of latents and patches come


def autoencoder(section: Mapping[str, Any], workdir: AnyPath, **common: Any) -> Stage:
    """Makes an autoencoder's stage; `common` are the fields of Stage that every stage has. Raises InputError."""
    common["data"] = dataclasses.replace(common["data"], latents="")  # they are its own, of the stage after it
    config = settings.construct(AutoencoderConfig, section["autoencoder"], "autoencoder")
    strides = config.strides
    common["data"] = common["data"].in_multiples(strides[0], math.lcm(*strides[1:]))
    weights = section.get("perceptual", "")
    rivals = {
        kind: settings.construct(DiscriminatorConfig, options, f"discriminator.{kind}")
        for kind, options in section.get("discriminator", {}).items()
    }
    objective = adversarial.autoencoder if rivals or weights else objectives.autoencoder
    perceptual = perceptual_parameters(weights) if weights else {}

    def init(rngs: nnx.Rngs) -> Any:
        model: Any = Autoencoder(config, rngs=rngs)
        if rivals:
            model.discriminator = Discriminators(rivals, config.in_channels, rngs=rngs)
        if weights:
            model.perceptual = LPIPS(rngs=rngs)
        return model

    def loaded(state: TrainState, dataset: Dataset) -> Params:
        return {**perceptual, **(principal(state, dataset) if config.linear else {})}

    def principal(state: TrainState, dataset: Dataset) -> Params:
        """The linear path starts at the principal components of the training patches."""
        model = state.model(state.params)
        model.start_at(
            patch_pca(
                np.concatenate(dataset.windows("train", clips=dataset.sample_of(CLIPS_MEASURED))),
                config.strides,
                config.latent_channels,
            )
        )
        return {path: value for path, value in parameters(model).items() if not adversarial.judges(path)}

    def finish(state: TrainState, dataset: Dataset) -> None:
        windows = dataset.windows("train", clips=dataset.sample_of(CLIPS_MEASURED))
        found = latent_statistics(state.model(), windows, sharding.make_mesh(**common["mesh"]))
        on_first_process(lambda: write_json(common["folder"] / "latents.json", found))

    @jit
    def beside(state: TrainState, video: jax.Array) -> jax.Array:
        model = state.model()
        return jnp.concatenate([video, to_uint8(model.decode(model.encode(to_unit(video)).mode))], 2)

    def preview(state: TrainState, dataset: Dataset) -> np.ndarray:
        """Some clips, each above its reconstruction."""
        clips = dataset.windows("train", per_clip=1, clips=range(min(PREVIEWED, len(dataset))))
        return run_over(sharding.make_mesh(**common["mesh"]), beside, state, np.concatenate(clips))

    return Stage(
        start=drawn(init, common["seed"], common["mesh"]),
        objective=settings.bind(objective, section.get("loss"), "loss"),
        trainable=lambda path: not path.startswith("perceptual."),
        averaged=lambda path: not adversarial.judges(path),
        loaded=loaded,
        finish=finish,
        preview=preview,
        **common,
    )


def perceptual_parameters(files: str) -> Params:
    """Reads LPIPS's parameters, under their paths in an autoencoder's stage. Raises InputError."""
    model = nnx.eval_shape(lambda: LPIPS(rngs=OneKey()))
    shapes = {path: value.shape for path, value in abstract_parameters(model).items()}
    return {f"perceptual.{path}": value for path, value in read_lpips(files, shapes).items()}
