"""Reads and writes the flow autoencoder of LFDM's released files, `{generator, region_predictor, bg_predictor}`.

Its networks are those of MRAA, whose files have the same keys. A file is read as safetensors (`vidjax.convert FILE`).
Its batch norms are frozen, with their statistics, see `models.flow_layers.FrozenBatchNorm`.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jax.typing import ArrayLike

from vidjax.errors import InputError
from vidjax.models.flow_autoencoder import FlowConfig
from vidjax.weights import convert
from vidjax.weights.convert import Rules
from vidjax.weights.folder import unpickle
from vidjax.weights.tensors import read

PARTS = ("generator.", "region_predictor.", "bg_predictor.")
KEYS: Rules = [
    (r"^region_predictor\.regions\.", "regions.heat."),
    (r"^region_predictor\.predictor\.", "regions.hourglass."),
    (r"^bg_predictor\.encoder\.down_blocks\.", "background.encoder.blocks."),
    (r"^bg_predictor\.fc\.", "background.out."),
    (r"^generator\.pixelwise_flow_predictor\.mask\.", "generator.flow.weights."),
    (r"^generator\.pixelwise_flow_predictor\.", "generator.flow."),
    (r"\.encoder\.down_blocks\.", ".down.blocks."),
    (r"\.decoder\.up_blocks\.", ".up."),
    (r"^generator\.first\.", "generator.conv_in."),
    (r"^generator\.final\.", "generator.conv_out."),
    (r"^generator\.(down|up)_blocks\.", r"generator.\1."),
    (r"\.bottleneck\.r(\d+)\.(conv|norm)([12])\.", lambda m: f".mid.{m[1]}.{m[2]}s.{int(m[3]) - 1}."),
    (r"\.running_mean$", ".mean"),
    (r"\.running_var$", ".variance"),
]
# The kernels that pictures are blurred with, which follow from the scale; how many batches a norm has seen; and what is
# of the training.
IGNORED = r"(\.down\.weight|\.num_batches_tracked)$|^(?!(generator|region_predictor|bg_predictor)\.)"


def open_file(path: str | Path, key: str) -> Mapping[str, np.ndarray]:
    """Opens a released file that the setting `key` names. Raises InputError if it is missing, a pickle or another
    model's."""
    tensors = read_safely(path, key, "a flow autoencoder of LFDM's")
    if missing := [part for part in PARTS if not any(name.startswith(part) for name in tensors)]:
        raise InputError(f"{key}={path} has no keys {missing[0]}*: it is no flow autoencoder of LFDM's")
    return tensors


def read_safely(path: str | Path, key: str, what: str) -> Mapping[str, np.ndarray]:
    """Reads the file that the setting `key` names. Raises InputError if it is missing or a pickle."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{key}={path} does not exist: name {what}, as safetensors")
    if path.suffix != ".safetensors":
        raise InputError(f"{key}={path} is no safetensors file: {unpickle(path)}")
    return read(path)


def check_config(config: FlowConfig, path: str) -> None:
    """Raises InputError for settings under which the released networks are others."""
    wanted = dict(norm="batch", corners=True, smallest=0.0, affine=True, offset=False)
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise InputError(f"{path} is a released network: set config.flow.{name}={value!r}, or take :mug_released")


def parameters(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Finds the array of each parameter of a FlowAutoencoder. Raises InputError for what does not fit."""
    return convert.fit(shapes, tensors, KEYS, IGNORED)


def tensors(params: Mapping[str, ArrayLike], source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Writes a FlowAutoencoder's parameters under the keys of the file that they came from; what of it is no parameter
    stays. Raises InputError for a key without a parameter."""
    return convert.write_back(params, source, KEYS, IGNORED)
