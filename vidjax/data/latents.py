"""Writes encoded examples to ArrayRecord files and reads them for training, in place of videos (`vidjax.cache`)."""

import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors.numpy import load, load_file, save, save_file

from vidjax.data.source import next_readable
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
    heldout: Mapping[str, np.ndarray] | None = None,
    null: Mapping[str, np.ndarray] | None = None,
) -> int:
    """Writes the examples of a data set in its order and cache.json, `about` and their number; returns that number.

    `heldout` is a batch of held-out windows, `null` the values of dropped conditions. cache.json comes last: a folder
    without it is not whole, and is not read.
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
    for name, arrays in (("heldout", heldout), ("null", null)):
        save_file(
            {key: np.ascontiguousarray(value) for key, value in (arrays or {}).items()}, folder / f"{name}.safetensors"
        )
    write_json(folder / "cache.json", {**about, "examples": count})
    return count


class Latents:
    """Reads a folder of `write_latents` in batches like those of `Dataset.batches`, in the order of training; after the
    last example comes the first.

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

    def held_out(self, most: int) -> dict[str, np.ndarray]:
        """Returns what `Dataset.held_out` does, encoded."""
        return {key: value[:most] for key, value in self._heldout.items()}

    def batches(
        self, batch_size: int, start_step: int = 0, process_index: int = 0, process_count: int = 1
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields what `Dataset.batches` does, encoded (see `encoded.encode_once`)."""
        if batch_size < 1 or batch_size % process_count:
            raise InputError(
                f"train.batch_size={batch_size} does not divide over {process_count} processes: make it a multiple"
            )
        own = batch_size // process_count
        return (self._batch(step * batch_size + process_index * own, own) for step in itertools.count(start_step))

    def _batch(self, first: int, count: int) -> dict[str, np.ndarray]:
        examples = [self._example(n % self._size) for n in range(first, first + count)]
        return {key: np.stack([example[key] for example in examples]) for key in examples[0]}

    def _example(self, index: int) -> dict[str, np.ndarray]:
        """Reads an example, or the next one that can be read, which is then marked as substituted."""
        used, example = next_readable(index, self._size, self._read, self.broken, self._warn)
        return example if used == index else {**example, "substituted": np.array(True)}

    def _read(self, index: int) -> dict[str, np.ndarray]:
        try:
            return load(self._records[index])
        except Exception as error:  # the readers raise many kinds
            raise BrokenClip(f"its record is damaged ({reason(error)})") from None

    def _warn(self, index: int, why: str) -> None:
        logger.warning("example %d of %s is left out: %s", index, self._folder, why)
