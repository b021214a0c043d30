"""LPIPS with VGG16 from safetensors: torchvision's keys of the network, the linear heads' as released."""

from pathlib import Path

import numpy as np

from vidjax.errors import InputError
from vidjax.models.vgg import CHANNELS
from vidjax.weights.convert import Rules, fit
from vidjax.weights.folder import unpickle
from vidjax.weights.tensors import read


def places(depths: tuple[int, ...]) -> list[int]:
    """Of each convolution in torchvision's `features`: a ReLU follows each, a pooling each level."""
    return [2 * n + level for n, level in enumerate(level for level, depth in enumerate(depths) for _ in range(depth))]


FEATURES = {str(place): n for n, place in enumerate(places(tuple(map(len, CHANNELS))))}
LPIPS_KEYS: Rules = [
    (r"^features\.(\d+)\.", lambda m: f"vgg.convs.{FEATURES.get(m[1], m[1] + '?')}."),
    (r"^lin(\d)\.model\.1\.", r"heads.\1."),
]
IGNORED = r"^(classifier|scaling_layer)\."  # of torchvision's VGG16 and of the released LPIPS


def read_lpips(files: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Reads the parameters of `LPIPS` by path, from one file or several with commas between.

    Raises InputError if a file is missing or a pickle, or if they are of another network.
    """
    tensors = {}
    for path in map(Path, files.split(",")):
        if not path.is_file():
            raise InputError(
                f"perceptual={path} does not exist: name a safetensors file with VGG16's features.N.weight and .bias "
                "and LPIPS's lin0 to lin4.model.1.weight, or leave it empty"
            )
        if path.suffix != ".safetensors":
            raise InputError(f"perceptual={path} is no safetensors file: {unpickle(path)}")
        tensors |= read(path)
    return fit(shapes, tensors, LPIPS_KEYS, IGNORED)
