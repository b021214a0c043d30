"""Warps pictures by grids: a grid says for each pixel of the result where in the picture it is taken from.

Places are (x, y) from -1 to 1, the outer edges of the first and the last pixel (torch's `align_corners=False`), so that
a place means the same at every resolution. With `corners` some functions are those of the released code of MRAA and
LFDM, whose grids mean the centres of the outer pixels by -1 and 1 but are read as above: their identity enlarges a
little, by n / (n - 1), and their smaller pictures are of the upper left pixels of blocks, not of the middles.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@functools.cache
def _places(n: int, corners: bool) -> Float[np.ndarray, " n"]:
    i = np.arange(n, dtype=np.float32)
    return 2 * i / max(n - 1, 1) - 1 if corners else (2 * i + 1) / n - 1


def identity_grid(height: int, width: int, corners: bool = False) -> Float[Array, "h w 2"]:
    """Returns the grid that takes every pixel from its own place."""
    y, x = np.meshgrid(_places(height, corners), _places(width, corners), indexing="ij")
    return jnp.asarray(np.stack([x, y], -1))


def sample_grid(
    x: Float[Array, "n h w c"], grid: Float[Array, "n i j 2"], reflect: bool = False
) -> Float[Array, "n i j c"]:
    """Interpolates pictures linearly at the places of a grid; outside they are zero, or reflected at their edges."""
    n, h, w, c = x.shape
    at_x, at_y = ((grid[..., axis] + 1) * (size / 2) - 0.5 for axis, size in enumerate((w, h)))
    if reflect:
        at_x, at_y = _reflect(at_x, w), _reflect(at_y, h)
    left, top = jnp.floor(at_x), jnp.floor(at_y)
    flat, out = x.reshape(n, h * w, c), jnp.zeros((*grid.shape[:3], c), x.dtype)
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        weight = (1 - jnp.abs(at_x - column)) * (1 - jnp.abs(at_y - row))
        inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
        place = jnp.clip(row, 0, h - 1).astype(jnp.int32) * w + jnp.clip(column, 0, w - 1).astype(jnp.int32)
        taken = jnp.take_along_axis(flat, place.reshape(n, -1, 1), 1).reshape(out.shape)
        out += (weight * inside)[..., None].astype(x.dtype) * taken
    return out


def _reflect(at: Array, n: int) -> Array:
    """Folds positions in pixels back between the edges -0.5 and n - 0.5, then to between the outer centres."""
    turned = jnp.abs(at + 0.5) % (2 * n)
    return jnp.clip(jnp.minimum(turned, 2 * n - turned) - 0.5, 0, n - 1)


def resize_linear(x: Float[Array, "n h w c"], size: tuple[int, int]) -> Float[Array, "n i j c"]:
    """Scales maps by linear interpolation between the centres of pixels, without a blur."""
    if x.shape[1:3] == size:
        return x
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "linear", antialias=False)


def resize_grid(grid: Float[Array, "n h w 2"], size: tuple[int, int], corners: bool = False) -> Float[Array, "n i j 2"]:
    """Scales a grid to the size of a picture. What is interpolated is how far each pixel moves, so that the identity
    stays the identity; with `corners` the places themselves, which at the edges do not go on."""
    if grid.shape[1:3] == size:
        return grid
    if corners:
        return resize_linear(grid, size)
    return identity_grid(*size) + resize_linear(grid - identity_grid(*grid.shape[1:3]), size)


def warp(x: Float[Array, "n h w c"], grid: Float[Array, "n i j 2"], corners: bool = False) -> Float[Array, "n h w c"]:
    """Warps pictures by a grid of any size."""
    return sample_grid(x, resize_grid(grid, x.shape[1:3], corners))


def shrink(x: Float[Array, "n h w c"], factor: int, corners: bool = False) -> Float[Array, "n i j c"]:
    """Scales pictures down by a whole factor, blurred by a Gaussian of deviation (factor - 1) / 2 pixels."""
    if factor == 1:
        return x
    down, right = (jnp.asarray(_shrinking(n, factor, corners)) for n in x.shape[1:3])
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("ih,jw,nhwc->nijc", down, right, x.astype(jnp.float32), precision=highest).astype(x.dtype)


@functools.cache
def _shrinking(n: int, factor: int, corners: bool) -> Float[np.ndarray, "m {n}"]:
    """The matrix of `shrink` along one axis. With `corners` zeros lie around the picture, otherwise its edges count
    more."""
    deviation = (factor - 1) / 2
    reach, start = round(4 * deviation), 0.0 if corners else deviation
    away = np.arange(n) - (np.arange(0, n, factor) + start)[:, None]
    weights = np.where(np.abs(away) <= reach, np.exp(-(away**2) / (2 * deviation**2)), 0)
    whole = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * deviation**2)).sum() if corners else weights.sum(1)
    return (weights / np.expand_dims(whole, -1)).astype(np.float32)
