"""FreeU's two factors against the Fourier transform and against numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.models.free_u import amplify_half, scale_low_frequencies


def by_transform(x, factor):
    """A window of half width 1 around the middle of the shifted transform over the two axes before the last."""
    found = np.fft.fftshift(np.fft.fft2(x, axes=(-3, -2)), axes=(-3, -2))
    row, column = (size // 2 for size in x.shape[-3:-1])
    found[..., max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1, :] *= factor
    return np.fft.ifft2(np.fft.ifftshift(found, axes=(-3, -2)), axes=(-3, -2)).real


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 3), (13, 20)])
def test_the_lowest_frequencies_are_those_of_the_transform(size):
    x = np.random.default_rng(0).standard_normal((2, 3, *size, 5)).astype("f")
    np.testing.assert_allclose(scale_low_frequencies(jnp.asarray(x), 0.4), by_transform(x, 0.4), atol=2e-6)


def test_half_of_the_features_are_amplified():
    x = np.ones((2, 3, 5), "f")
    np.testing.assert_allclose(amplify_half(jnp.asarray(x), 1.2), x * np.float32([1.2, 1.2, 1, 1, 1]))
