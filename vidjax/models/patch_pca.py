"""The best linear autoencoder of video patches: their principal components."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, UInt8

Strides = tuple[int, int, int]
AnyArray = Array | np.ndarray


def to_patches(x: Float[AnyArray, "b t h w c"], strides: Strides) -> Float[AnyArray, "b s i j p"]:
    """Space-time to depth: each (t, h, w) block of pixels becomes one vector of p = t h w c numbers."""
    t, h, w = strides
    return rearrange(x, "b (s t) (i h) (j w) c -> b s i j (t h w c)", t=t, h=h, w=w)


def from_patches(x: Float[AnyArray, "b s i j p"], strides: Strides) -> Float[AnyArray, "b t h w c"]:
    """The inverse of `to_patches`."""
    t, h, w = strides
    return rearrange(x, "b s i j (t h w c) -> b (s t) (i h) (j w) c", t=t, h=h, w=w)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PatchPCA:
    """Components of unit norm, the strongest first: latents have the units of pixels. `spread`: their deviations."""

    mean: Float[Array, " p"]
    basis: Float[Array, "p z"]
    spread: Float[Array, " z"]
    strides: Strides = dataclasses.field(metadata={"static": True})

    def encode(self, x: Float[AnyArray, "b t h w c"]) -> Float[Array, "b s i j z"]:
        """Returns the components of each patch."""
        return (to_patches(jnp.asarray(x), self.strides) - self.mean) @ self.basis

    def decode(self, z: Float[Array, "b s i j z"]) -> Float[Array, "b t h w c"]:
        """Returns the video whose patches have these components."""
        return from_patches(z @ self.basis.T + self.mean, self.strides)

    def reconstruct(self, x: Float[AnyArray, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """The baseline for autoencoders with as many latents."""
        return self.decode(self.encode(x))


def patch_pca(
    videos: Float[AnyArray, "b t h w c"] | UInt8[AnyArray, "b t h w c"], strides: Sequence[int], channels: int
) -> PatchPCA:
    """The first `channels` principal components of all patches of `videos` (pixels in [-1, 1], or bytes).

    Of all linear maps to so many numbers a patch these lose the least squared error (Eckart & Young 1936).
    """
    t, h, w = strides
    mean, covariance, count = 0.0, 0.0, 0
    for video in videos:  # one at a time: a data set's patches need not fit in memory at once
        pixels = np.asarray(video, np.float64)
        pixels = pixels / 127.5 - 1 if video.dtype == np.uint8 else pixels
        patches = to_patches(pixels[None], (t, h, w)).reshape(-1, t * h * w * pixels.shape[-1])
        mean, covariance, count = mean + patches.sum(0), covariance + patches.T @ patches, count + len(patches)
    mean = mean / count
    variance, basis = np.linalg.eigh(covariance / count - np.outer(mean, mean))
    strongest = slice(None, -channels - 1, -1)
    spread = np.sqrt(np.maximum(variance[strongest], 0))
    return PatchPCA(*(jnp.asarray(a, jnp.float32) for a in (mean, basis[:, strongest], spread)), strides=(t, h, w))
