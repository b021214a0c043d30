"""Videos and latents of any size through an encoder or a decoder in overlapping tiles: memory is that of one tile."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from vidjax.errors import InputError

Box = tuple[int, int, int]


def in_tiles(
    run: Callable[[Any], Any],
    x: Num[Any, "b t h w c"],
    tile: Box,
    overlap: Box,
    strides: Box = (1, 1, 1),
    into: Box = (1, 1, 1),
) -> Num[np.ndarray, "b f p q d"]:
    """Computes `run(x)` tile by tile, of `tile` latents along (t, h, w); tiles share at least `overlap` latents.

    strides: elements of `x` per latent (of an encoder, which takes pixels); into: elements of the result per latent (of
    a decoder). In an overlap the quarter next to a tile's edge is left out and the half in the middle blended: so where
    no output sees farther than that quarter, and norms are over no more than it, the result is that of the whole;
    norms over a frame or a clip see only their tile, and it is near. All tiles are of one size. Raises InputError.
    """
    latents = tuple(n // s for n, s in zip(x.shape[1:4], strides))
    axes = [places(*one) for one in zip(latents, tile, overlap)]
    sizes = [min(n, size) for n, size in zip(latents, tile)]
    shares = [blend(starts, size, zoom) for starts, size, zoom in zip(axes, sizes, into)]
    cut = lambda starts, scale: tuple(slice(a * s, (a + n) * s) for a, n, s in zip(starts, sizes, scale))
    total, dtype = np.zeros(0, np.float32), None
    for which in itertools.product(*(range(len(starts)) for starts in axes)):
        starts = [axis[i] for axis, i in zip(axes, which)]
        part = np.asarray(run(x[(slice(None), *cut(starts, strides))]))
        if dtype is None:
            dtype = part.dtype
            whole = (n * zoom for n, zoom in zip(latents, into))
            total = np.zeros((len(part), *whole, part.shape[-1]), np.float32)
        t, h, w = (share[i] for share, i in zip(shares, which))
        total[(slice(None), *cut(starts, into))] += np.einsum("bthwc,t,h,w->bthwc", part.astype(np.float32), t, h, w)
    return np.round(total).astype(dtype) if dtype == np.uint8 else total.astype(dtype)


def places(length: int, tile: int, overlap: int) -> list[int]:
    """Places as few tiles as share at least `overlap`, evenly spread; returns where they start. Raises InputError."""
    if length <= tile:
        return [0]
    if not 0 <= overlap < tile:
        raise InputError(f"tiles of {tile} latents cannot overlap by {overlap}; take 0 to {tile - 1}")
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def blend(starts: list[int], size: int, zoom: int) -> Float[np.ndarray, "n p"]:
    """Weighs each tile in each of its own places: the weights at any one place of the whole sum to 1."""
    weights = np.ones((len(starts), size * zoom))
    for i, (a, b) in enumerate(itertools.pairwise(starts)):
        shared = (a + size - b) * zoom
        ramp = np.clip(2 * (np.arange(shared) + 0.5) / max(shared, 1) - 0.5, 0, 1)
        weights[i + 1, :shared] *= ramp
        weights[i, size * zoom - shared :] *= 1 - ramp
    total = np.zeros((starts[-1] + size) * zoom)
    for start, own in zip(starts, weights):
        total[start * zoom : start * zoom + len(own)] += own
    return np.stack([own / total[a * zoom : a * zoom + len(own)] for a, own in zip(starts, weights)])
