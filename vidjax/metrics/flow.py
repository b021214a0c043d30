"""Measures motion by optical flow: its magnitude, its smoothness, its diversity over videos. Numpy and OpenCV.

Flow is in pixels per frame, the last axis (down, right), so only videos of one size can be compared.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vidjax.errors import InputError

Video = UInt8[np.ndarray, "t h w c"]
Flow = Float[np.ndarray, "s h w 2"]


def flow(video: Video) -> Flow:
    """Returns the displacement of each pixel from each frame to the next (Farnebäck 2003, OpenCV's; c is 1 or 3).

    Raises InputError for a single frame, and where OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise InputError("flow metrics need OpenCV: pip install 'vidjax[metrics]'") from None
    if len(video) < 2:
        raise InputError("optical flow needs two frames, and this video has one: leave the flow metrics out")
    grey = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) if f.shape[-1] == 3 else f[..., 0] for f in video]
    options: dict[str, Any] = dict(
        flow=None, pyr_scale=0.5, levels=3, winsize=15, iterations=3, poly_n=5, poly_sigma=1.2, flags=0
    )
    return np.stack([cv2.calcOpticalFlowFarneback(a, b, **options)[..., ::-1] for a, b in itertools.pairwise(grey)])


def motion_magnitude(flow: Flow) -> float:
    """Returns the mean length of the flow over pixels and frames, in pixels per frame."""
    return float(np.linalg.norm(flow, axis=-1).mean())


def flow_smoothness(flow: Flow) -> float:
    """Returns the mean length of the flow's second difference over time at each pixel, in pixels; less is smoother.

    0 for constant velocity (and acceleration). Flow being velocity, this is jerk, by which Flash & Hogan 1985 measure
    smoothness. Raises InputError for less than four frames.
    """
    if len(flow) < 3:
        raise InputError(f"flow smoothness needs four frames, this video has {len(flow) + 1}; give longer ones")
    return float(np.linalg.norm(np.diff(flow, 2, axis=0), axis=-1).mean())


def mean_flow(flow: Flow) -> Float[np.ndarray, "h w 2"]:
    """Returns the mean flow over time at each pixel, which compares videos of different numbers of frames."""
    return flow.mean(0)


def motion_diversity(fields: Sequence[Float[np.ndarray, "h w 2"]]) -> float:
    """Returns the mean distance between the mean flows of two videos over all pairs, in pixels per frame.

    The average pairwise distance of Yuan & Kitani 2020, on flow; the distance is flow's mean end-point error. Raises
    InputError for a single video, and for videos of several sizes.
    """
    if len(fields) < 2:
        raise InputError("motion diversity compares videos, and there is one: give two or more")
    if len(sizes := {field.shape[:2] for field in fields}) > 1:
        listed = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
        raise InputError(
            f"motion diversity compares videos of one size, these have {listed}; scale them to one (--height, --width)"
        )
    distances = [np.linalg.norm(a - b, axis=-1).mean() for i, a in enumerate(fields) for b in fields[:i]]
    return float(np.mean(distances))
