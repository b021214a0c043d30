"""PSNR and SSIM against closed forms, and against the textbook formula on scipy's Gaussian filter."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vidjax.metrics.reconstruction import psnr, sharpness, ssim

RNG = np.random.default_rng(0)
VIDEOS = RNG.integers(0, 200, (3, 2, 16, 20, 3), dtype=np.uint8)


def test_psnr_of_a_constant_shift():
    shifts = np.array([1, 5, 50], np.uint8)
    shifted = VIDEOS + shifts[:, None, None, None, None]
    np.testing.assert_allclose(psnr(VIDEOS, shifted), 20 * np.log10(255 / np.array([1, 5, 50])), rtol=1e-5)


def test_psnr_of_known_noise():
    noise = RNG.choice([-0.2, 0.2], VIDEOS.shape).astype(np.float32)  # variance 0.04 on a range of 2
    unit = VIDEOS.astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(psnr(unit, unit + noise), 10 * np.log10(4 / 0.04), rtol=1e-4)


def test_psnr_of_uint8_is_that_of_its_floats():
    other = RNG.integers(0, 255, VIDEOS.shape, dtype=np.uint8)
    unit = VIDEOS.astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(psnr(unit, other), psnr(VIDEOS, other), rtol=1e-5)
    assert np.all(np.isinf(psnr(VIDEOS, VIDEOS)))


def test_ssim_of_itself_is_one_and_of_constants_is_the_luminance_term():
    np.testing.assert_allclose(ssim(VIDEOS, VIDEOS), 1, rtol=1e-5)
    a, b = np.full((1, 2, 12, 12, 1), 51, np.uint8), np.full((1, 2, 12, 12, 1), 102, np.uint8)
    np.testing.assert_allclose(ssim(a, b), (2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4), rtol=1e-4)


def test_ssim_is_the_textbook_formula_on_another_gaussian_filter():
    x, y = VIDEOS[0, 0, ..., 0] / 255.0, RNG.integers(0, 255, VIDEOS.shape, dtype=np.uint8)[0, 0, ..., 0] / 255.0
    blur = lambda z: gaussian_filter(z, 1.5, truncate=3.5)[5:-5, 5:-5]
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    expected = ((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))).mean()
    as_video = lambda z: (2 * z - 1).astype(np.float32)[None, None, ..., None]
    assert ssim(as_video(x), as_video(y))[0] == pytest.approx(expected, rel=1e-3)


def test_sharpness_is_the_ratio_of_slopes():
    ramp = np.add.outer(3.0 * np.arange(12), 4.0 * np.arange(12))[None, None, :, :, None]  # 5 a pixel
    as_video = lambda x: (x / 100 - 1).astype(np.float32)
    np.testing.assert_allclose(sharpness(as_video(0.4 * ramp), as_video(ramp)), 0.4, rtol=1e-5)
    assert sharpness(VIDEOS, VIDEOS)[0] == 1
    blurred = gaussian_filter(VIDEOS.astype(np.float32) / 127.5 - 1, (0, 0, 1, 1, 0)).astype(np.float32)
    assert np.all(sharpness(blurred, VIDEOS) < 0.5)
