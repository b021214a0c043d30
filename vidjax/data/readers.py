"""Readers of data sets: each returns a Source, a sequence of Items that can be opened in any order.

An Item has a name, a caption and a class, and opens into a Video (frames, fps, height, width, read); an image is a clip
of one frame. The libraries of file formats are imported by the reader that needs them.
"""

import gzip
import io
import itertools
import json
import math
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt8

from vidjax.data.combinations import combinations
from vidjax.data.layouts import frames, pattern, ucf101
from vidjax.data.pictures import SUFFIXES
from vidjax.data.shapes import shapes_source
from vidjax.data.source import (
    VIDEO_SUFFIXES,
    Item,
    OpenClip,
    Source,
    broken_item,
    check_exists,
    open_clip,
    read_caption,
    source_of_paths,
)
from vidjax.data.video_reading import ArrayVideo, BrokenClip
from vidjax.data.webvid import SHIPPED as SHIPPED
from vidjax.data.webvid import webvid
from vidjax.errors import InputError, reason
from vidjax.runtime.inputs import decode, open_regular, read_bytes, read_json
from vidjax.runtime.limits import MAX_CAPTIONS, MAX_DECODED, from_json


def folder(path: str, split: str = "", suffixes: Collection[str] = frozenset(VIDEO_SUFFIXES)) -> Source:
    """Finds all video files under a folder, sorted by path; sub-folders (UCF-101's layout) are the classes.

    A caption is, first found: NAME.txt beside the file; the file's entry in captions.json in the folder
    ({file: caption}, or a list of {"file", "caption"}); the sub-folder's name.
    """
    root = check_exists(path, "a folder of videos")
    if not root.is_dir():
        raise InputError(f"{path} is not a folder: set data.path to the folder, or data.source to 'clip'")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in suffixes)
    if not paths:
        raise InputError(f"no files to read in {path}: expected names ending in {' '.join(sorted(suffixes))}")
    captions = _captions_file(root / "captions.json")
    names = [p.relative_to(root) for p in paths]
    groups = [name.parts[0] if len(name.parts) > 1 else "" for name in names]
    classes = {group: k for k, group in enumerate(sorted(set(groups) - {""}))}
    texts = [
        read_caption(p, captions.get(name.as_posix(), group.replace("_", " ")))
        for p, name, group in zip(paths, names, groups)
    ]
    return source_of_paths(paths, texts, [classes.get(group, -1) for group in groups], len(classes))


def _captions_file(path: Path) -> dict[str, str]:
    if not os.path.lexists(path):
        return {}
    remedy = 'write {"name.mp4": "caption"}'
    try:
        found = from_json(decode(read_bytes(path, MAX_CAPTIONS, remedy), path))
        found = found if isinstance(found, dict) else {entry["file"]: entry["caption"] for entry in found}
        if wrong := [name for name, caption in found.items() if not isinstance(caption, str)]:
            raise ValueError(f"the caption of {wrong[0]} is no text")
        return found
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a captions file ({reason(error)}): {remedy}") from None


def images(path: str, split: str = "") -> Source:
    """Finds all pictures under a folder, each a clip of one frame; captions and classes as in `folder`."""
    return folder(path, split, SUFFIXES)


def clip(path: str, split: str = "") -> Source:
    """Opens one video file, with the caption in NAME.txt beside it."""
    file = check_exists(path, "one video file")
    return source_of_paths([file], [read_caption(file, "")])


IDX_SPLITS = {"train": ("train", "train"), "test": ("t10k", "test")}


def idx(path: str, split: str = "train") -> Source:
    """Reads MNIST's layout (also Fashion-MNIST): `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, plain or .gz.

    Split "test" is `t10k-`. Images are clips of one frame with one channel; the caption is the class number.
    """
    root = check_exists(path, "a folder with IDX files")
    images, labels = (read_idx(_idx_file(root, split, kind)) for kind in ("images", "labels"))
    if images.ndim == 3 and 0 in images.shape[1:]:
        raise InputError(f"{path}: the {split} images have {images.shape[1]}x{images.shape[2]} pixels: get them again")
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise InputError(
            f"{path}: images {images.shape} and labels {labels.shape} in the {split} IDX files do not belong together"
        )

    def item(i: int) -> Item:
        return Item(f"{path}#{i}", str(labels[i]), int(labels[i]), lambda: ArrayVideo(images[i][None, :, :, None]))

    return Source(len(images), item, int(labels.max(initial=0)) + 1)


def _idx_file(root: Path, split: str, kind: str) -> Path:
    for prefix in IDX_SPLITS.get(split, (split,)):
        for file in sorted(root.glob(f"{prefix}-{kind}*ubyte*")):
            return file
    raise InputError(
        f"no {split} {kind} in {root}: expected a file like {IDX_SPLITS.get(split, (split,))[0]}-{kind}-idx?-ubyte[.gz]"
    )


def read_idx(path: str | Path) -> UInt8[np.ndarray, "..."]:
    """Reads the array in an IDX file of bytes (LeCun's format: two zeros, type 8, number of axes, sizes, data)."""
    try:
        with open_regular(path) as opened, _unpacked(opened, path) as file:
            head = file.read(4)
            if head[:3] != b"\0\0\x08":
                raise ValueError("its first bytes are not those of an IDX file of bytes")
            shape = np.frombuffer(file.read(4 * head[3]), ">u4", head[3]).tolist()
            if math.prod(shape) > MAX_DECODED:
                raise ValueError(f"it speaks of {math.prod(shape)} bytes, more than {MAX_DECODED}")
            return np.frombuffer(file.read(math.prod(shape)), np.uint8, math.prod(shape)).reshape(shape)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise InputError(f"{path} is not a whole IDX file ({reason(error)}): get it again") from None


def _unpacked(file: BinaryIO, path: str | Path) -> Any:
    return gzip.open(file) if Path(path).suffix == ".gz" else file


def tfds(path: str, split: str = "train") -> Source:
    """Reads a data set of tensorflow_datasets, without TensorFlow.

    `path` is a name ("mnist", "cifar10": prepared as ArrayRecord on first use) or the folder of a prepared one. Uses
    its `video` feature (frames, or encoded bytes) or else `image`, and `label`, `name`, `caption` or `text` if it
    has them.
    """
    import tensorflow_datasets as tfds

    try:
        if Path(path).is_dir():
            for file in Path(path).iterdir():
                if not file.is_dir():
                    open_regular(file, "leave only the files of the data set there").close()
            _check_features(Path(path, "features.json"))
            builder: Any = tfds.builder_from_directory(path)
        else:
            builder = tfds.builder(path, file_format="array_record")
            builder.download_and_prepare()
        records = builder.as_data_source(split=split)
    except InputError:
        raise
    except Exception as error:  # tfds raises many kinds; each means that the name, the split or the download is wrong
        raise InputError(f"tfds data set {path!r}, split {split!r}: {' '.join(str(error).split())[:200]}") from error
    features = builder.info.features
    pixels = next((key for key in ("video", "image") if key in features), None)
    if pixels is None:
        raise InputError(
            f"tfds data set {path!r} has neither 'video' nor 'image' among its features: {', '.join(features)}"
        )
    label_feature = features["label"] if "label" in features else None  # noqa: SIM401 (a FeaturesDict has no get)
    names = list(getattr(label_feature, "names", None) or ())
    text_key = next((key for key in ("caption", "text") if key in features), None)

    def item(i: int) -> Item:
        try:
            record = records[i]
        except Exception as error:  # of the reader's and the decoders' many kinds
            return broken_item(f"{path}/{split}#{i}", f"its record is damaged ({reason(error)})")
        label = int(record["label"]) if "label" in features else -1
        text = _text(record[text_key]) if text_key else names[label] if names and label >= 0 else ""
        name = _text(record["name"]) if "name" in features else f"{path}/{split}#{i}"
        return Item(name, text, label, lambda: _open_value(record[pixels]))

    return Source(len(records), item, getattr(label_feature, "num_classes", None) or 0)


def _check_features(path: Path) -> None:
    """Raises InputError for features that are not tfds's own: tfds would import the module that the file names."""

    def names(value: Any) -> Iterator[str]:
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):  # JSON in JSON
            value = from_json(value)
        if isinstance(value, dict):
            yield from (str(value[key]) for key in ("pythonClassName", "python_class_name", "type") if key in value)
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from names(part)

    for name in names(read_json(path, remedy="prepare the data set again")):
        if "." in name and not name.startswith("tensorflow_datasets.core.features."):
            raise InputError(f"{path} names the feature {name}, code that is not tfds's: it is not read")


def _text(value) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _open_value(value) -> OpenClip:
    """Opens encoded bytes, frames [t, h, w, c], or an image [h, w, c]."""
    if isinstance(value, (bytes, np.bytes_)):
        return open_clip(bytes(value))
    if isinstance(value, np.ndarray) and value.dtype == object:
        return open_clip(bytes(value.item()))
    array = np.asarray(value)
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise BrokenClip(f"neither encoded bytes nor uint8 frames ({array.dtype}, {array.ndim} axes)")
    return ArrayVideo(array if array.ndim == 4 else array[None])


def array_record(path: str, split: str = "train") -> Source:
    """Reads ArrayRecord files of encoded videos: one file, or a folder of *.array_record (-00000-of-00010).

    A record is one line of JSON ({"name", "text", "label"}, all optional), a newline, and the bytes of a video file:
    what `write_array_record` writes. A folder that tfds prepared is read by `tfds`.
    """
    root = check_exists(path, "an ArrayRecord file or a folder of them")
    if (root / "dataset_info.json").exists():
        return tfds(path, split)
    files = sorted(str(p) for p in root.glob("*array_record*")) if root.is_dir() else [str(root)]
    if not files:
        raise InputError(f"no *.array_record files in {path}")
    for file in files:
        open_regular(file, "leave only ArrayRecord files there").close()
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        records = ArrayRecordDataSource(files)
        size = len(records)
    except Exception as error:  # the reader raises RuntimeError and ValueError, by version
        raise InputError(f"{path} is not ArrayRecord: {' '.join(str(error).split())[:200]}") from error

    def item(i: int) -> Item:
        try:
            header, _, data = records[i].partition(b"\n")
        except Exception as error:  # RuntimeError, by version others
            return broken_item(f"{path}#{i}", f"its record is damaged ({reason(error)})")
        try:
            entry = dict(from_json(header))
            name, text, label = str(entry.get("name", "")), str(entry.get("text", "")), int(entry.get("label", -1))
        except (ValueError, TypeError, OverflowError) as error:
            return broken_item(f"{path}#{i}", f"its record has no readable header ({reason(error)})")
        return Item(name or f"{path}#{i}", text, label, lambda: open_clip(data))

    return Source(size, item, _count_classes(item, size))


def _count_classes(item: Callable[[int], Item], size: int, most: int = 10_000) -> int:
    """Returns one more than the greatest label among the first `most` records; 0 if the first eight have none."""
    labels = (item(i).label for i in range(min(size, most)))
    first = list(itertools.islice(labels, 8))
    return 1 + max(itertools.chain(first, labels)) if max(first, default=-1) >= 0 else 0


def write_array_record(path: str | Path, items: Sequence[tuple[dict, bytes]]) -> None:
    """Writes (header, encoded video) pairs as records that `array_record` reads; header: name, text, label."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for header, data in items:
        record = io.BytesIO()
        record.write(json.dumps(header).encode() + b"\n")
        record.write(data)
        writer.write(record.getvalue())
    writer.close()


SOURCES: dict[str, Callable[..., Source]] = {
    "webvid": webvid,
    "folder": folder,
    "frames": frames,
    "pattern": pattern,
    "ucf101": ucf101,
    "images": images,
    "clip": clip,
    "tfds": tfds,
    "array_record": array_record,
    "idx": idx,
    "shapes": shapes_source,
    "combinations": combinations,
}


def make_source(name: str, path: str, split: str) -> Source:
    """Opens the clips of SOURCES[name]; `{split}` in the path is replaced by the split's name."""
    return SOURCES[name](path.replace("{split}", split), split)
