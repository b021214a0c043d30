"""Which part of a picture a video shows. Imports no JAX: programs that decode start faster without it."""

import numpy as np
from jaxtyping import UInt8


def cover_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width) of the smallest scaled picture of the same aspect that covers `size`."""
    scale = max(size[0] / height, size[1] / width)
    return max(size[0], round(height * scale)), max(size[1], round(width * scale))


def crop_at(
    video: UInt8[np.ndarray, "t h w c"], size: tuple[int, int], u: tuple[float, float]
) -> UInt8[np.ndarray, "t h2 w2 c"]:
    """Crops to `size` at the relative place u in [0, 1]^2 (down, right); (0.5, 0.5) is the centre."""
    (top, left) = (min(int(f * (have - want + 1)), have - want) for f, have, want in zip(u, video.shape[1:3], size))
    return video[:, top : top + size[0], left : left + size[1]]
