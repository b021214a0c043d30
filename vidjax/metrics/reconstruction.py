"""Compares two videos pixel by pixel: PSNR, SSIM, sharpness. Numpy, on uint8 or on floats in [-1, 1]."""

import numpy as np
from jaxtyping import Float, UInt8

Videos = UInt8[np.ndarray, "*#n t h w c"] | Float[np.ndarray, "*#n t h w c"]


def _unit(videos: np.ndarray) -> np.ndarray:
    """Maps pixels to [0, 1], float32."""
    return videos.astype(np.float32) / 255 if videos.dtype == np.uint8 else (videos.astype(np.float32) + 1) / 2


def psnr(a: Videos, b: Videos) -> Float[np.ndarray, " *n"]:
    """Returns the peak signal-to-noise ratio of each video in dB, from the error over all frames; infinite where equal.

    `a` and `b` may be uint8 or floats in [-1, 1] each; shapes broadcast.
    """
    error = np.square(_unit(a) - _unit(b)).mean((-4, -3, -2, -1), dtype=np.float64)
    with np.errstate(divide="ignore"):
        return -10 * np.log10(error)


def ssim(a: Videos, b: Videos) -> Float[np.ndarray, " *n"]:
    """Returns the structural similarity (Wang et al. 2004: Gaussian window, 11 pixels, sigma 1.5), mean over frames and
    channels.

    Takes what `psnr` takes; frames have at least 11 x 11 pixels.
    """
    a, b = _unit(a), _unit(b)
    rows, columns = _gaussian_bands(a.shape[-3]), _gaussian_bands(a.shape[-2])
    blur = lambda x: np.einsum("ih,jw,...hwc->...ijc", rows, columns, x, optimize=True)
    mean_a, mean_b = blur(a), blur(b)
    spread = blur(a * a) + blur(b * b) - mean_a**2 - mean_b**2
    shared = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * mean_a * mean_b + c1) * (2 * shared + c2) / ((mean_a**2 + mean_b**2 + c1) * (spread + c2))
    return index.mean((-4, -3, -2, -1), dtype=np.float64)


def sharpness(a: Videos, b: Videos) -> Float[np.ndarray, " *n"]:
    """Returns the mean gradient magnitude of each video `a` over that of `b`, below 1 where `a` is blurred, for the
    arguments of `psnr`."""
    return _slope(a) / _slope(b)


def _slope(videos: np.ndarray) -> np.ndarray:
    """Returns the mean length over pixels of (difference to the pixel below, to the pixel on the right)."""
    x = _unit(videos)
    down, right = (np.diff(x, axis=axis) for axis in (-3, -2))
    return np.hypot(down[..., :, :-1, :], right[..., :-1, :, :]).mean((-4, -3, -2, -1), dtype=np.float64)


def _gaussian_bands(size: int, window: int = 11, sigma: float = 1.5) -> np.ndarray:
    """Returns [size - window + 1, size]: each row weighs the pixels under one place of the window."""
    weights = np.exp(-0.5 * ((np.arange(window) - window // 2) / sigma) ** 2)
    bands = np.zeros((size - window + 1, size))
    for row in range(len(bands)):
        bands[row, row : row + window] = weights / weights.sum()
    return bands
