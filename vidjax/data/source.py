"""A data set is a Source: a sequence of named, captioned, labelled clips that are opened when they are needed."""

import bisect
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vidjax.data.pictures import Picture, Pictures, is_picture
from vidjax.data.video_reading import ArrayVideo, BrokenClip, Video
from vidjax.errors import InputError
from vidjax.runtime.inputs import decode, open_regular
from vidjax.runtime.limits import MAX_TEXT

# A context manager with frames, fps, height, width, channels and read(indices, size).
OpenClip = Video | ArrayVideo | Pictures
T = TypeVar("T")
VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".gif"}


@dataclass(frozen=True)
class Item:
    """A clip before it is opened. label -1: none. `open` raises BrokenClip if it cannot be read.

    The caption is cut at `MAX_TEXT` characters; half a character of UTF-16 in it becomes "?". `others` are further
    captions of the same clip.
    """

    name: str
    text: str
    label: int
    open: Callable[[], OpenClip]
    others: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "text", self.text[:MAX_TEXT].encode("utf-8", "replace").decode())

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions, `text` first."""
        return (self.text, *self.others)


@dataclass(frozen=True)
class Source:
    """A sequence of `size` items, looked up by number in any order; num_classes 0: without classes. `parts` are the
    sizes of the data sets that it joins, if it does."""

    size: int
    item: Callable[[int], Item]
    num_classes: int = 0
    parts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Item:
        return self.item(int(index))


def join(sources: Sequence[Source]) -> Source:
    """Makes one Source of several, one after the other; each has classes of its own."""
    starts = [0, *itertools.accumulate(map(len, sources))]
    classes = [0, *itertools.accumulate(source.num_classes for source in sources)]

    def item(i: int) -> Item:
        part = bisect.bisect_right(starts, i) - 1
        found = sources[part][i - starts[part]]
        return found if found.label < 0 else dataclasses.replace(found, label=found.label + classes[part])

    return Source(starts[-1], item, classes[-1], tuple(map(len, sources)))


def broken_item(name: str, why: str) -> Item:
    """Returns an item that raises BrokenClip when it is opened."""

    def refuse() -> OpenClip:
        raise BrokenClip(why)

    return Item(name, "", -1, refuse)


def first_readable(
    clips: Iterable[int], read: Callable[[int], T], broken: dict[int, str], warn: Callable[[int, str], None]
) -> tuple[int, T]:
    """Reads the first of some clips that can be read: (its number, what was read).

    A clip that raises BrokenClip is passed to `warn`, added to `broken` and not tried again. Raises InputError if all
    do.
    """
    tried = 0
    for candidate in clips:
        tried += 1
        if candidate in broken:
            continue
        try:
            return candidate, read(candidate)
        except BrokenClip as why:
            warn(candidate, str(why))
            broken[candidate] = str(why)
    raise InputError(f"none of the {tried} clips can be read: check config.data")


def open_clip(file: str | Path | bytes) -> OpenClip:
    """Opens a video or a picture, in a file of any name or in memory, or a folder of numbered pictures."""
    if not isinstance(file, bytes) and os.path.isdir(file):
        return Pictures(file)
    return Picture(file) if is_picture(file) else Video(file)


def source_of_paths(
    paths: Sequence[Path], texts: Sequence[str], labels: Sequence[int] | None = None, num_classes: int = 0
) -> Source:
    """Makes a Source with one clip per path, unopened."""

    def item(i: int) -> Item:
        return Item(str(paths[i]), texts[i], -1 if labels is None else labels[i], lambda: open_clip(paths[i]))

    return Source(len(paths), item, num_classes)


def check_exists(path: str, what: str) -> Path:
    """Returns the path of a data set. Raises InputError if there is nothing; `what` says what should be."""
    if not path:
        raise InputError(f"data.path is empty: set it to {what}")
    if not os.path.exists(path):
        raise InputError(f"no such path: {path} (data.path must be {what})")
    return Path(path)


def read_caption(path: Path, otherwise: str) -> str:
    """Reads the caption in NAME.txt beside a clip, which may be a folder: at most `MAX_TEXT` characters.

    Raises InputError for one that is no text (see `decode`)."""
    file = path.with_name((path.name if os.path.isdir(path) else path.stem) + ".txt")
    if not os.path.isfile(file):
        return otherwise
    with open_regular(file, "make it readable, or move it away") as opened:
        content = opened.read(4 * MAX_TEXT + 4)
    return decode(content, file, whole=len(content) < 4 * MAX_TEXT)[:MAX_TEXT].strip()
