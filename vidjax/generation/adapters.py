"""LoRA files merged into a model's parameters before it samples."""

import math
from collections.abc import Sequence
from pathlib import Path

from vidjax.errors import InputError, check_range
from vidjax.generation.cascade import AnyGenerator
from vidjax.models.lora import merge_loras
from vidjax.models.parameters import Params
from vidjax.models.unet import UNet
from vidjax.weights import lora


def merge_lora_files(generator: AnyGenerator, files: Sequence[str]) -> Params:
    """Merges LoRAs, each FILE or FILE:WEIGHT, with the generator's parameters; those that stay as they are are shared.

    Raises InputError for a model that takes none, a file that is no LoRA, or one of another model, and for a weight
    that is no number.
    """
    weights: dict[str, float] = {}
    for path, weight in map(parse, files):
        if path in weights:
            raise InputError(f"the LoRA {path} is there twice; name it once, with the sum of the weights")
        weights[path] = weight
    network = generator.model.unet
    if not isinstance(network, UNet):
        raise InputError("--lora is of U-Nets with Stable Diffusion's layers, this model has another; leave it out")
    blocks = network.config.blocks_per_level
    return merge_loras(generator.params, {path: (lora.load(path, blocks), weights[path]) for path in weights})


def parse(text: str) -> tuple[str, float]:
    """Splits FILE or FILE:WEIGHT into (path, weight), by default 1. Raises InputError."""
    path, colon, number = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise InputError(f"LoRA {text!r}: {number!r} is no weight; write FILE or FILE:WEIGHT, such as {path}:0.7")
    check_range(f"LoRA {text!r}: ", -100, 100, weight=weight)
    return path, weight
