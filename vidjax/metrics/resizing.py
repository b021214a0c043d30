"""Resizes frames as the published metrics do: bilinear, without antialiasing, on one of two grids."""

import numpy as np
from jaxtyping import Array, Float


def bilinear(x: Float[Array, "*b h w c"], size: int, half_pixels: bool) -> Float[Array, "*b {size} {size} c"]:
    """Scales both sides to `size`, whatever their ratio.

    half_pixels: the centres of pixels are matched (torch's align_corners=False, as FVD is computed by StyleGAN-V), else
    their corners at 0 (TensorFlow 1's align_corners=False, which FID was published with).
    """
    for axis in (x.ndim - 3, x.ndim - 2):
        low, high, weight = _neighbours(x.shape[axis], size, half_pixels)
        weight = weight.reshape(-1, *(1,) * (x.ndim - 1 - axis))
        x = x.take(low, axis) * (1 - weight) + x.take(high, axis) * weight
    return x


def _neighbours(length: int, size: int, half_pixels: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns for each new pixel the two old ones around it, and the weight of the second."""
    half = 0.5 if half_pixels else 0.0
    place = np.clip((np.arange(size) + half) * (length / size) - half, 0, length - 1)
    low = np.floor(place).astype(np.int32)
    return low, np.minimum(low + 1, length - 1), (place - low).astype(np.float32)
