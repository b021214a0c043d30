"""Turns decoded frames into a training window: which frames, and which range of values."""

import math

import jax
import numpy as np
from jaxtyping import Float, Num, UInt8


def frame_step(clip_fps: int | float, stride: int, fps: int | float | None) -> float:
    """Returns source frames per frame of the window: `stride`, or what gives `fps` frames per second."""
    return clip_fps / fps if fps else float(stride)


def window_span(frames: int, step: float) -> int:
    """Returns how many source frames a window of `frames` spans."""
    return int((frames - 1) * step) + 1


def longest_window(available: int, step: float) -> int:
    """Returns how many frames the longest window in `available` source frames has."""
    frames = math.ceil(available / step)
    return frames if window_span(frames, step) <= available else max(frames - 1, 0)  # rounding


def window_starts(available: int, frames: int, step: float) -> int:
    """Returns the number of places where a window fits in `available` frames."""
    return max(available - window_span(frames, step) + 1, 0)


def window_indices(start: int, frames: int, step: float) -> np.ndarray:
    """Returns the source frame numbers of a window, start + floor(k step)."""
    return start + np.floor(np.arange(frames) * step).astype(int)


def spread_starts(starts: int, span: int, count: int | None) -> list[int]:
    """Returns `count` evenly spaced starts out of `starts` places; by default as many as do not overlap."""
    most = 1 + (starts - 1) // span
    count = most if count is None else min(count, starts)
    return sorted({math.floor(x + 0.5) for x in np.linspace(0, starts - 1, count)})


def to_unit(video: Num[np.ndarray | jax.Array, "..."]) -> Float[np.ndarray | jax.Array, "..."]:
    """Maps pixels from 0..255 to [-1, 1], fp32; in numpy or jax."""
    return video.astype("float32") / 127.5 - 1


def to_uint8(video: Float[np.ndarray | jax.Array, "..."]) -> UInt8[np.ndarray | jax.Array, "..."]:
    """Maps [-1, 1] to pixels 0..255, rounded and clipped: the exact inverse of `to_unit`."""
    return ((video.astype("float32") + 1) * 127.5).round().clip(0, 255).astype("uint8")
