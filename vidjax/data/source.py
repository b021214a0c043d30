"""What a data set is: a sequence of named, captioned, labelled clips that open when they are needed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class OpenClip(Protocol):
    """An open clip, a context manager: its size, and frames at random."""

    frames: int
    fps: float
    height: int
    width: int
    channels: int

    def read(self, indices, size: tuple[int, int] | None = None) -> np.ndarray: ...
    def __enter__(self): ...
    def __exit__(self, *_): ...


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
