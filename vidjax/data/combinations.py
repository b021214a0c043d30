"""Drawn clips whose captions combine four properties; training sees three quarters of the combinations."""

import dataclasses
from itertools import product

import numpy as np
from jaxtyping import UInt8

from vidjax.data.shapes import FPS, MOVES, PALETTE, draw
from vidjax.data.source import Item, Source
from vidjax.data.video_reading import ArrayVideo
from vidjax.errors import InputError

SHAPES = ("circle", "bar", "post")  # no two pictures, of either size, overlap by more than 0.59
FIELD = (20, 20, 20)  # dark: all colours are brighter, so that an outline is much the same in all of them
SIZES = {"small": 0.17, "large": 0.24}  # radius, in widths of the picture
PLACES, FRAMES, PIXELS = 8, 13, 32  # clips per combination; their frames, height and width
MARGIN = 0.24  # of the centre to the border, in widths: every shape is whole in every frame
PROPERTIES = {"size": tuple(SIZES), "colour": tuple(PALETTE), "shape": SHAPES, "direction": tuple(MOVES)}


@dataclasses.dataclass(frozen=True)
class Combination:
    """What a clip shows: a value of each of `PROPERTIES`."""

    size: str
    colour: str
    shape: str
    direction: str

    @property
    def caption(self) -> str:
        """Says all four, no two of them in neighbouring words."""
        return f"a {self.shape} that is {self.colour} and {self.size} moves {self.direction}"

    @property
    def heldout(self) -> bool:
        """Whether training never sees it: one direction of every size, colour and shape; but any three of the four
        properties are seen together."""
        return sum(values.index(getattr(self, name)) for name, values in PROPERTIES.items()) % len(MOVES) == 0


COMBINATIONS = tuple(Combination(*values) for values in product(*PROPERTIES.values()))
CAPTIONS = {each.caption: each for each in COMBINATIONS}
SPLITS = {split: tuple(c for c in COMBINATIONS if c.heldout == (split == "heldout")) for split in ("train", "heldout")}


def show(
    what: Combination, start: tuple[float, float], frames: int = FRAMES, pixels: int = PIXELS
) -> UInt8[np.ndarray, "t h w 3"]:
    """Draws the clip; `start` is the centre in the first frame, (down, right)."""
    return draw(what.shape, what.colour, what.direction, frames, pixels, SIZES[what.size], start, FIELD)


def combinations(path: str = "", split: str = "train") -> Source:
    """Returns the 108 combinations of split "train" or the 36 of "heldout", each on `PLACES` parallel ways
    across the picture; the class is the shape. `path` is ignored. Raises InputError for another split."""
    if split not in SPLITS:
        raise InputError(f"data.split={split!r} is unknown: choose from {', '.join(SPLITS)}")
    shown = SPLITS[split]

    def item(i: int) -> Item:
        what, place = shown[i // PLACES], i % PLACES
        beside = MARGIN + (1 - 2 * MARGIN) * place / (PLACES - 1)
        begin = lambda along: beside if not along else MARGIN if along > 0 else 1 - MARGIN
        down, right = MOVES[what.direction]
        start = (begin(down), begin(right))
        clip = lambda: show(what, start)
        return Item(f"{what.caption} {place}", what.caption, SHAPES.index(what.shape), lambda: ArrayVideo(clip(), FPS))

    return Source(len(shown) * PLACES, item, len(SHAPES))
