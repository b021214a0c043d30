"""FreeU (Si et al. 2023): on the way up the backbone counts more, and the lowest frequencies of what skips it less."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def amplify_half(x: Float[Array, "*b c"], factor: float) -> Float[Array, "*b c"]:
    """Multiplies the first half of the features by `factor`."""
    features = x.shape[-1]
    return x * jnp.where(jnp.arange(features) < features // 2, factor, 1).astype(x.dtype)


def scale_low_frequencies(x: Float[Array, "*b h w c"], factor: float) -> Float[Array, "*b h w c"]:
    """Multiplies the Fourier coefficients of frequency 0 and -1, along height and width, by `factor`, in fp32.

    Those four are what a window of half width 1 around the middle of a shifted transform holds; as +1 is not among
    them the result is complex, and its real part is taken, as the paper's code does.
    """
    (rows, rows_i), (columns, columns_i) = _project_on_lowest(x.shape[-3]), _project_on_lowest(x.shape[-2])
    y = x.astype(jnp.float32)
    apply = lambda rows, columns: jnp.einsum("ij,...jkc,lk->...ilc", rows, y, columns)
    low = apply(rows, columns) - apply(rows_i, columns_i)
    return (y + (factor - 1) * low).astype(x.dtype)


def _project_on_lowest(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes the real and the imaginary part of the projection [size, size] on the frequencies 0 and -1, which are one
    for size 1."""
    apart = np.arange(size)[:, None] - np.arange(size)
    waves = sum(np.exp(2j * np.pi * frequency * apart / size) for frequency in {0, -1 % size}) / size
    return waves.real.astype(np.float32), waves.imag.astype(np.float32)
