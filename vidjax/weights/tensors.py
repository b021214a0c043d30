"""Tensors in safetensors files, mapped into memory and not read before they are used."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from vidjax.errors import InputError

DTYPES: dict[str, DTypeLike] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.dtype(jnp.bfloat16),
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of one file: 8 bytes of length, a header in JSON with dtypes, shapes and places, then the bytes.

    Raises InputError if it is not such a file, or a part of one.
    """
    path, size = Path(path), Path(path).stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length)) if 0 < length <= size - 8 else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise InputError(f"{path} is no safetensors file, or only the beginning of one: get it again")
    header.pop("__metadata__", None)
    start, end = 8 + length, max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != start + end:
        raise InputError(f"{path} is cut off: it has {size} bytes, its header speaks of {start + end}; get it again")
    if unknown := {entry["dtype"] for entry in header.values()} - DTYPES.keys():
        raise InputError(f"{path} has tensors of type {min(unknown)}; only {', '.join(DTYPES)} are read")
    data = np.memmap(path, np.uint8, "r")
    return {
        key: np.ndarray(entry["shape"], DTYPES[entry["dtype"]], data, start + entry["data_offsets"][0])
        for key, entry in header.items()
    }


def read_shards(index: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a model in several files, by its `*.safetensors.index.json`. Raises InputError as `read` does."""
    index = Path(index)
    places: dict[str, str] = json.loads(index.read_text())["weight_map"]
    out: dict[str, np.ndarray] = {}
    for name in sorted(set(places.values())):
        if not (index.parent / name).is_file():
            raise InputError(f"{index} names {name}, which is not there: get the missing file")
        out |= read(index.parent / name)
    if missing := places.keys() - out.keys():
        raise InputError(f"{index} names {min(missing)}, which is in none of its files: get them again")
    return out
