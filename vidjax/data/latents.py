"""Writes encoded examples to ArrayRecord files and reads them for training, in place of videos (`vidjax.cache`)."""

import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import grain
import numpy as np
from safetensors.numpy import load, load_file, save, save_file

from vidjax.data import order
from vidjax.data.config import DataConfig
from vidjax.data.source import first_readable
from vidjax.data.video_reading import BrokenClip
from vidjax.errors import InputError, reason
from vidjax.runtime.inputs import open_regular, read_json
from vidjax.runtime.limits import MAX_CAPTIONS
from vidjax.runtime.storage import write_json

logger = logging.getLogger(__name__)
EXAMPLES_PER_FILE = 4096


def fingerprint(params: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of parameters and their names, the same on every machine."""
    digest = hashlib.sha256()
    for path in sorted(params):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(params[path], np.float32).tobytes())
    return digest.hexdigest()


def write_latents(
    folder: Path,
    examples: Iterable[Mapping[str, np.ndarray]],
    about: Mapping[str, Any],
    heldout: Sequence[Mapping[str, np.ndarray]] = (),
    null: Mapping[str, np.ndarray] | None = None,
) -> int:
    """Writes the examples of a data set in its order and cache.json, `about` and their number; returns that number.

    `heldout` are batches of held-out windows, `null` the values of dropped conditions. cache.json comes last: a folder
    without it is not whole, and is not read. `about` has in `buckets`, if there are several, the number of examples and
    the share of each; they come one bucket after the other.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    count, writer = 0, cast(Any, None)
    for example in examples:
        if count % EXAMPLES_PER_FILE == 0:
            if writer:
                writer.close()
            writer = ArrayRecordWriter(
                str(folder / f"latents-{count // EXAMPLES_PER_FILE:05d}.array_record"), "group_size:1"
            )
        writer.write(save({key: np.asarray(value) for key, value in example.items()}))
        count += 1
    if writer:
        writer.close()
    batches = {f"{k}." * bool(k) + key: value for k, batch in enumerate(heldout) for key, value in batch.items()}
    for name, arrays in (("heldout", batches), ("null", null or {})):
        save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, folder / f"{name}.safetensors")
    write_json(folder / "cache.json", {**about, "examples": count})
    return count


def _defaults(names: Iterable[str]) -> dict[str, Any]:
    known = dataclasses.asdict(DataConfig())
    return {name: known[name] for name in names if name in known}


class Latents:
    """Reads a folder of `write_latents` in batches like those of `Dataset.batches`, in the order of training; after the
    last example, of a bucket, comes its first.

    The next example stands in for one that cannot be read, with a warning. Raises InputError unless the folder is whole
    and was made as `about` says.
    """

    def __init__(self, folder: str | Path, about: Mapping[str, Any]):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._folder = folder = Path(folder)
        again = "make it again with python -m vidjax.cache"
        if not (folder / "cache.json").exists():
            raise InputError(f"data.latents={folder} has no cache.json: {again}")
        made = read_json(folder / "cache.json", MAX_CAPTIONS, again)
        try:
            self._size, self.texts, self.num_classes = int(made["examples"]), made["texts"], made["num_classes"]
            counts, shares = zip(*made.get("buckets") or [(self._size, 1.0)])
            self.shares, ends = [float(share) for share in shares], [0, *itertools.accumulate(map(int, counts))]
            self._buckets = [range(*pair) for pair in itertools.pairwise(ends)]
            if ends[-1] != self._size or not all(self._buckets):
                raise ValueError("its buckets are not all of its examples")
            if "data" in about:  # options that were added since have their defaults
                made["data"] = {**json.loads(json.dumps(_defaults(about["data"]))), **made["data"]}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"data.latents={folder}: cache.json is damaged ({reason(error)}): {again}") from None
        for key, value in about.items():
            if made.get(key) != json.loads(json.dumps(value)):
                raise InputError(
                    f"data.latents={folder} was made with {key} {made.get(key)}, this run has {value}: {again}"
                )
        files = sorted(folder.glob("latents-*.array_record"))
        for file in files:
            open_regular(file, again).close()
        try:
            self._records = ArrayRecordDataSource([str(file) for file in files])
            found = len(self._records)
            self._heldout, self.null = (load_file(folder / f"{name}.safetensors") for name in ("heldout", "null"))
        except Exception as error:  # the readers raise many kinds
            raise InputError(f"data.latents={folder} is damaged ({reason(error)}): {again}") from None
        if found != self._size:
            raise InputError(f"data.latents={folder} has {found} of {self._size} examples: {again}")
        self.broken: dict[int, str] = {}  # number of an example that cannot be read -> why

    def __len__(self) -> int:
        return self._size

    def held_out(self, most: int) -> list[dict[str, np.ndarray]]:
        """Returns what `Dataset.held_out` does, encoded."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, value in self._heldout.items():
            bucket, _, key = name.rpartition(".")
            found.setdefault(bucket, {})[key] = value[:most]
        return [found[bucket] for bucket in sorted(found, key=lambda name: int(name or 0))]

    def batches(
        self,
        batch_size: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        bucket: int | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields what `Dataset.batches` does, encoded (see `encoded.encode_once`)."""
        if batch_size < 1 or batch_size % process_count:
            raise InputError(
                f"train.batch_size={batch_size} does not divide over {process_count} processes: make it a multiple"
            )
        streams = [order.repeat(grain.MapDataset.range(len(own))).map(self._reads(own)) for own in self._buckets]
        shares = self.shares
        if bucket is not None:
            streams, shares = streams[bucket : bucket + 1], [1.0]
        return order.read(order.batch_streams(streams, shares, batch_size, start_step, process_index, process_count))

    def _reads(self, own: range) -> Callable[[int], dict[str, np.ndarray]]:
        """Makes what reads the n-th example of a bucket, or the next one there that can be read, which is then marked
        as substituted."""

        def read(n: int) -> dict[str, np.ndarray]:
            candidates = itertools.chain(own[n:], own[:n])
            used, example = first_readable(candidates, self._read, self.broken, self._warn)
            return example if used == own[n] else {**example, "substituted": np.array(True)}

        return read

    def _read(self, index: int) -> dict[str, np.ndarray]:
        try:
            return load(self._records[index])
        except Exception as error:  # the readers raise many kinds
            raise BrokenClip(f"its record is damaged ({reason(error)})") from None

    def _warn(self, index: int, why: str) -> None:
        logger.warning("example %d of %s is left out: %s", index, self._folder, why)
