"""Reads from the pixels of a drawn clip what it shows: colour, shape, size and direction, by measuring."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from vidjax.data.combinations import CAPTIONS, FIELD, PROPERTIES, SHAPES, SIZES
from vidjax.data.shapes import MOVES, PALETTE, SPEED, coverage
from vidjax.errors import InputError

STRONG = 0.75  # of the greatest distance from the field, what is nearer does not say which colour it is
COLOUR_DISTANCE = 60  # of 0 to 255, within which a colour must be
OVERLAP = 0.6  # of what each frame shows with what is drawn in its place, intersection over union
DRAWN = tuple((size, shape) for size in SIZES for shape in SHAPES)


def read_video(video: UInt8[np.ndarray, "t h w 3"], stride: int = 1) -> dict[str, str]:
    """Returns the value of each of `PROPERTIES`, or "" where it is none of the known ones or changes, of a video with
    every `stride`-th frame.

    Size and shape are those whose picture overlaps best with all frames, and enough with every one; the colour is the
    same in all of them.
    """
    colours, centres, overlaps = zip(*(_read_frame(frame.astype(np.float32)) for frame in video))
    overlap = np.array(overlaps)
    best = overlap.mean(0).argmax()
    size, shape = DRAWN[best] if overlap[:, best].min() >= OVERLAP else ("", "")
    colour = colours[0] if len(set(colours)) == 1 else ""
    return {"size": size, "colour": colour, "shape": shape, "direction": _direction(_steps(np.array(centres)) / stride)}


def read_steps(video: UInt8[np.ndarray, "t h w 3"], stride: int = 1) -> Float[np.ndarray, "n 2"]:
    """Returns the way of what is there from each frame to the next (down, right), in steps of drawn clips of which
    every `stride`-th frame is taken."""
    return _steps(np.array([_read_frame(frame.astype(np.float32))[1] for frame in video])) / stride


def agreement(video: UInt8[np.ndarray, "t h w 3"], caption: str) -> dict[str, bool]:
    """Says of each property whether the video shows what its caption says. Raises InputError for another caption than
    those of drawn clips."""
    if caption not in CAPTIONS:
        example = next(iter(CAPTIONS))
        raise InputError(f"its caption {caption!r} is none of a drawn clip, such as {example!r}")
    asked = dataclasses.asdict(CAPTIONS[caption])
    return {name: value == asked[name] for name, value in read_video(video).items()}


def shares(samples: Sequence[tuple[UInt8[np.ndarray, "t h w 3"], str]]) -> dict[str, float]:
    """Returns the share of (video, caption) that show each property of the caption, and of those that show all four."""
    agreed = [agreement(*sample) for sample in samples]
    found = {f"the {name} of the caption": np.mean([each[name] for each in agreed]) for name in PROPERTIES}
    found["all four"] = np.mean([all(each.values()) for each in agreed])
    return {name: float(share) for name, share in found.items()}


def _read_frame(frame: Float[np.ndarray, "h w 3"]) -> tuple[str, tuple[float, float], list[float]]:
    """(the colour of what is there, its centre, its overlap with each of `DRAWN` in its place)."""
    away = frame - np.array(FIELD, np.float32)
    strength = np.linalg.norm(away, axis=-1)
    mean = away[strength >= STRONG * strength.max()].mean(0)
    palette = {name: np.array(rgb, np.float32) - np.array(FIELD, np.float32) for name, rgb in PALETTE.items()}
    colour = min(palette, key=lambda name: float(np.linalg.norm(mean - palette[name])))
    cover = _sharpen(away @ palette[colour] / np.square(palette[colour]).sum())
    centre = _centre(cover)
    drawn = [_sharpen(coverage(shape, len(frame), SIZES[size], centre)) for size, shape in DRAWN]
    overlaps = [float(np.minimum(cover, each).sum() / np.maximum(cover, each).sum()) for each in drawn]
    seen = np.linalg.norm(mean - palette[colour]) <= COLOUR_DISTANCE
    return colour if seen else "", centre, overlaps


def _sharpen(cover: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Takes what covers less than a quarter for the field and what covers more than three for the shape."""
    return np.clip(2 * cover - 0.5, 0, 1)


def _centre(cover: Float[np.ndarray, "h w"]) -> tuple[float, float]:
    """The centre of mass (down, right) in widths of the picture, a torus: around the mean angle, so that a shape that
    goes over the border is whole."""
    found = []
    for axis in (1, 0):
        line, place = cover.sum(axis), (np.arange(len(cover)) + 0.5) / len(cover)
        turn = np.angle((line * np.exp(2j * np.pi * place)).sum()) / (2 * np.pi)
        offset = (place - turn + 0.5) % 1 - 0.5
        found.append(float(turn + (line * offset).sum() / max(line.sum(), 1e-6)))
    return found[0], found[1]


def _steps(centres: Float[np.ndarray, "t 2"]) -> Float[np.ndarray, "n 2"]:
    """The shorter way on the torus, in steps of drawn clips."""
    return ((np.diff(centres, axis=0) + 0.5) % 1 - 0.5) / SPEED


def _direction(steps: Float[np.ndarray, "n 2"]) -> str:
    """The direction of the mean step, at the speed of drawn clips within a half of it; each step within all of it."""
    for name, move in MOVES.items():
        off = steps - np.array(move)
        if len(off) and np.linalg.norm(off.mean(0)) < 0.5 and (np.linalg.norm(off, axis=1) < 1).all():
            return name
    return ""
