"""What a data set is: a sequence of named, captioned, labelled clips that open when they are needed."""

from collections.abc import Callable
from dataclasses import dataclass

from vidjax.data.video_io import ArrayVideo, Video

OpenClip = Video | ArrayVideo  # a context manager with frames, fps, height, width, channels and read(indices, size)


@dataclass(frozen=True)
class Item:
    """One clip before it is opened. label -1: none. `open` raises BrokenClip for what cannot be read."""

    name: str
    text: str
    label: int
    open: Callable[[], OpenClip]


@dataclass(frozen=True)
class Source:
    """`size` items, looked up by number in any order; num_classes 0: without classes."""

    size: int
    item: Callable[[int], Item]
    num_classes: int = 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Item:
        return self.item(int(index))
