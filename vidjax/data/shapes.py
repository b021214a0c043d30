"""Draws captioned videos: a coloured shape crosses a grey field and comes in again on the other side."""

from itertools import product

import numpy as np
from jaxtyping import Float, UInt8

from vidjax.data.source import Item, Source
from vidjax.data.video_reading import ArrayVideo

SHAPES = ("circle", "square", "triangle")
COLOURS = {"red": (220, 50, 40), "green": (50, 190, 70), "blue": (50, 90, 220), "yellow": (235, 210, 60)}
PALETTE = COLOURS | {"cyan": (60, 190, 210), "magenta": (210, 70, 200)}  # `shapes_source` takes four
MOVES = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
FIELD = (128, 128, 128)
FRAMES, SIZE, RADIUS, SPEED, FPS = 32, 64, 0.17, 1 / 24, 8.0


def _inside(shape: str, y: np.ndarray, x: np.ndarray, r: float) -> np.ndarray:
    """Returns the distance of each point inside the outline (negative outside), in the units of y and x; y points
    down."""
    if shape == "circle":
        return r - np.hypot(y, x)
    if shape == "square":
        return 0.85 * r - np.maximum(abs(y), abs(x))
    if shape in ("bar", "post"):
        across, along = (y, x) if shape == "bar" else (x, y)
        return np.minimum(r - abs(along), r / 2 - abs(across))
    return np.minimum(r / 2 - y, (y + r - np.sqrt(3) * abs(x)) / 2)  # equilateral, point up, circumradius r


def coverage(
    shape: str, size: int, radius: float = RADIUS, centre: tuple[float, float] = (0.5, 0.5)
) -> Float[np.ndarray, "h w"]:
    """Returns how much of each pixel of a square picture the shape covers, 0 to 1; all else in widths of the picture,
    which is a torus."""
    grid = (np.arange(size) + 0.5) / size
    dy, dx = ((grid - c + 0.5) % 1 - 0.5 for c in centre)
    return np.clip(_inside(shape, dy[:, None], dx[None, :], radius) * size + 0.5, 0, 1)


def draw(
    shape: str,
    colour: str,
    move: str,
    frames: int = FRAMES,
    size: int = SIZE,
    radius: float = RADIUS,
    start: tuple[float, float] = (0.5, 0.5),
    field: tuple[int, int, int] = FIELD,
) -> UInt8[np.ndarray, "t h w 3"]:
    """Draws the clip "a {colour} {shape} moves {move}", antialiased, on a torus: the motion never ends. `start` is the
    centre in the first frame, (down, right)."""
    change = np.array(PALETTE[colour], np.float32) - np.array(field, np.float32)
    video = np.tile(np.array(field, np.uint8), (frames, size, size, 1))
    for t in range(frames):
        y, x = (s + v * SPEED * t for s, v in zip(start, MOVES[move]))
        covered = coverage(shape, size, radius, (y, x))
        inside = covered > 0  # a tenth of the picture
        video[t, inside] = np.round(field + covered[inside, None] * change)
    return video


def shapes_source(path: str = "", split: str = "train") -> Source:
    """Returns all 48 combinations of shape, colour and direction; the class is the shape. `path` and `split` are
    ignored."""
    combinations = list(product(SHAPES, COLOURS, MOVES))

    def item(i: int) -> Item:
        shape, colour, move = combinations[i]
        text = f"a {colour} {shape} moves {move}"
        return Item(text, text, SHAPES.index(shape), lambda: ArrayVideo(draw(shape, colour, move), FPS))

    return Source(len(combinations), item, len(SHAPES))
