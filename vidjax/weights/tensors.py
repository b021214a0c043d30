"""Tensors in safetensors files, mapped into memory and not read before they are used."""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from vidjax.errors import InputError
from vidjax.runtime.limits import MAX_HEADER, from_json

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


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor is."""

    path: Path
    dtype: DTypeLike
    shape: tuple[int, ...]
    offset: int


class Tensors(Mapping[str, np.ndarray]):
    """Tensors by key. Each look-up maps its own piece of the file, which is let go with the array."""

    def __init__(self, places: Mapping[str, Place]):
        self.places = dict(places)

    def __getitem__(self, key: str) -> np.ndarray:
        place = self.places[key]
        return np.memmap(place.path, place.dtype, "r", place.offset, place.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def shapes_under(places: Mapping[str, Any], prefix: str) -> dict[str, tuple[int, ...]]:
    """Finds the shapes of the tensors whose keys begin with `prefix`, by what follows it."""
    return {key[len(prefix) :]: place.shape for key, place in places.items() if key.startswith(prefix)}


def read(path: str | Path) -> Tensors:
    """Maps the tensors of one file: 8 bytes of length, a header in JSON with dtypes, shapes and places, then the bytes.

    Raises InputError if it is not such a file, or a part of one; if its header is wrong in itself, or has tensors that
    do not fill the file from end to end, none of them twice.
    """
    path, size = Path(path), Path(path).stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = from_json(file.read(length)) if 0 < length <= min(size - 8, MAX_HEADER) else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise InputError(f"{path} is no safetensors file, or only the beginning of one: get it again")
    header.pop("__metadata__", None)
    if wrong := [key for key, entry in header.items() if not _well_formed(entry)]:
        raise InputError(f"{path}: its header says of {wrong[0]} {str(header[wrong[0]])[:99]}: get it again")
    start = 8 + length
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != start + end:
        raise InputError(f"{path} is cut off: it has {size} bytes, its header speaks of {start + end}; get it again")
    if unknown := {entry["dtype"] for entry in header.values()} - DTYPES.keys():
        raise InputError(f"{path} has tensors of type {min(unknown)}; only {', '.join(DTYPES)} are read")
    last = 0
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, stop = entry["data_offsets"]
        wanted = math.prod(entry["shape"]) * np.dtype(DTYPES[entry["dtype"]]).itemsize
        if first != last or stop - first != wanted:
            raise InputError(
                f"{path}: {key}, {entry['dtype']} of shape {entry['shape']}, cannot be at {first} to {stop} with "
                f"{last} as the end of what lies before: get it again"
            )
        last = stop
    return Tensors(
        {
            key: Place(path, DTYPES[entry["dtype"]], tuple(entry["shape"]), start + entry["data_offsets"][0])
            for key, entry in header.items()
        }
    )


def _well_formed(entry: Any) -> bool:
    """Whether it is a type's name, a shape and two offsets, all of whole numbers that numpy can hold."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2 or len(shape) > 32:
        return False
    return all(type(n) is int and 0 <= n < 2**63 for n in (*shape, *offsets))


def read_shards(index: str | Path) -> Tensors:
    """Maps the tensors of a model in several files, by its `*.safetensors.index.json`.

    Raises InputError as `read` does, and for files outside the index's folder."""
    index = Path(index)
    try:
        files = from_json(index.read_bytes())["weight_map"]
        names = sorted(set(files.values()))
        whole = all(isinstance(name, str) for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise InputError(f"{index} has no weight_map from tensors to files: get it again")
    places: dict[str, Place] = {}
    for name in names:
        if name in ("", ".", "..") or {*name} & {"/", "\\", "\0"}:
            raise InputError(f"{index} names {name!r}, which is no file beside it: get it again")
        if not os.path.isfile(index.parent / name):
            raise InputError(f"{index} names {name}, which is not there: get the missing file")
        places |= read(index.parent / name).places
    if missing := files.keys() - places.keys():
        raise InputError(f"{index} names {min(missing)}, which is in none of its files: get them again")
    return Tensors(places)
