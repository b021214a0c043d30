"""A folder in the layout of diffusers, ready to sample."""

import sys
from pathlib import Path
from typing import Any

from flax import nnx

from vidjax.generation.generator import Generator
from vidjax.generation.options import SampleConfig
from vidjax.models.parameters import parameters
from vidjax.weights import pretrained


def load_generator(
    path: str | Path, frames: int | None = None, defaults: SampleConfig | None = None, **options: Any
) -> Generator:
    """Loads a folder's model to sample `frames` frames, by default as many as it was trained on, 1 for a model of
    images, with the sampler that its scheduler names.

    `options` are those of `weights.pretrained.load`. Prints a warning if the scheduler asks for what is not offered.
    Raises InputError.
    """
    loaded = pretrained.load(path, **options)
    if loaded.caveat and defaults is None:
        print(f"warning: {path}: {loaded.caveat}", file=sys.stderr)
    return Generator(
        nnx.graphdef(loaded.model),
        parameters(loaded.model),
        loaded.schedule,
        loaded.prediction,
        loaded.tokenize,
        (frames or loaded.frames, *loaded.size),
        loaded.model.codec.autoencoder.config.in_channels,
        defaults or SampleConfig(sampler=loaded.sampler, **loaded.defaults),
        refinement=loaded.refinement,
    )
