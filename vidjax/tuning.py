"""Stages that tune a model of another project: its weights from a folder, a strategy, and clips encoded once."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vidjax import objectives, pretrained, settings
from vidjax.checkpoint import Checkpoints
from vidjax.encoded import encode_once, stand_in
from vidjax.errors import InputError
from vidjax.finetune import strategy
from vidjax.generator import Generator, SampleConfig
from vidjax.models.layers import Over
from vidjax.stage import Stage
from vidjax.train_state import abstract_parameters, parameters, split
from vidjax.video_model import VideoModel


@dataclasses.dataclass(frozen=True)
class TunedConfig:
    """How an image U-Net becomes one of videos. The defaults start as the image model, frame by frame.

    keys: what a frame's self-attention looks at (see `models.attention`); None: an image model stays one. norm_over
    "clip" and `released` (a random bias where the layers over time put out, so that they are not the identity at the
    start) are the numerics of Tune-A-Video's released code.
    """

    keys: str | None = "first_and_previous"
    norm_over: Over = "frame"
    released: bool = False

    @property
    def block(self) -> tuple[tuple[str, str], ...] | None:
        """The sublayers of a transformer block, as in `models.unet.BLOCKS`."""
        if self.keys is None:
            return None
        return (("attn1", self.keys), ("attn2", "tokens"), ("ff", "ff"), ("attn_temp", "zero_time"))


def tuning(section: Mapping[str, Any], workdir: Any, **common: Any) -> Stage:
    """A stage that tunes `config.pretrained`. Raises InputError for what in the folder or the config does not fit."""
    folder, seed = section["pretrained"], common["seed"]
    if not folder:
        raise InputError("config.pretrained is empty: set --config.pretrained to a folder in the layout of diffusers")
    options = dict(section.get("finetune", {}))
    tune = strategy(options.pop("strategy", "full"), **options)
    text = tune.trainable("text.")  # then captions are encoded at every step
    model = settings.construct(TunedConfig, section.get("model"), "model")
    load = partial(
        pretrained.load,
        folder,
        inflate=model.block,
        norm_over=model.norm_over,
        remat=section["train"].get("remat", "none"),
    )
    known = load(weights=False)

    def models(weights: bool) -> tuple[VideoModel, VideoModel]:
        loaded = load(weights=weights).model
        rngs = nnx.Rngs(seed)
        if model.released and weights:
            random_biases(loaded, rngs)
        tune.surgery(loaded, rngs)
        return loaded, stand_in(loaded, text=not text)

    if section.get("prompt"):
        common["data"] = dataclasses.replace(common["data"], caption=section["prompt"])
    return Stage(
        init=lambda rngs: models(True)[1],
        pretrained=models,
        encode=partial(encode_once, text=not text),
        objective=settings.bind(
            objectives.diffusion, section.get("loss"), "loss", schedule=known.schedule, prediction=known.prediction
        ),
        tokenize=known.tokenize,
        trainable=tune.trainable,
        **common,
    )


def random_biases(model: VideoModel, rngs: nnx.Rngs) -> None:
    """The released Tune-A-Video's start: torch's bias, uniform within 1 / sqrt(fan in), behind each attention over
    time, whose weight alone is zero."""
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if path[-3:] == ("attn_temp", "to_out", "bias"):
            bound = leaf.shape[0] ** -0.5
            leaf.set_value(jax.random.uniform(rngs.params(), leaf.shape, leaf.dtype, -bound, bound))


def tuned_generator(section: Mapping[str, Any], stage: Stage) -> Generator:
    """The tuned model with its averaged parameters, text encoder and autoencoder included."""
    assert stage.pretrained is not None
    full, model = stage.pretrained(True)
    trained, _ = split(abstract_parameters(nnx.state(model)), stage.trainable)
    with Checkpoints(stage.folder / "checkpoints") as checkpoints:
        params = {**parameters(full), **checkpoints.restore_ema(trained)}
    known = pretrained.load(section["pretrained"], weights=False)
    return Generator(
        nnx.graphdef(full),
        {path: jnp.asarray(value) for path, value in params.items()},
        known.schedule,
        known.prediction,
        known.tokenize,
        (stage.data.frames, *stage.data.hw),
        3,
        settings.construct(SampleConfig, section.get("sample"), "sample"),
    )
