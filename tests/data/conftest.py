"""A small real video in H.264, made once."""

import numpy as np
import pytest

from vidjax.data.shapes import draw
from vidjax.data.video_io import write_mp4


@pytest.fixture(scope="session")
def frames() -> np.ndarray:
    """40 frames of 48x64, all different."""
    return draw("circle", "red", "right", frames=40, size=64)[:, 8:56]


@pytest.fixture(scope="session")
def mp4(tmp_path_factory, frames):
    path = tmp_path_factory.mktemp("video") / "circle.mp4"
    write_mp4(path, frames, 10.0)
    return path
