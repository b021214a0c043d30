"""LPIPS: how different two pictures look to VGG16 (Zhang et al. 2018); its weights come from a file."""

from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vidjax.models.convolution import Conv
from vidjax.models.layers import linear

CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # Simonyan & Zisserman 2015, D
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's, for pixels in [-1, 1]


class VGG16(nnx.Module):
    """Frames in [-1, 1] to the maps after the last ReLU of each of the five levels."""

    def __init__(self, channels: tuple[tuple[int, ...], ...] = CHANNELS, *, rngs: nnx.Rngs):
        widths = [3, *(dim for level in channels for dim in level)]
        self.convs = nnx.List([Conv(cin, cout, rngs=rngs) for cin, cout in pairwise(widths)])
        self.depths = tuple(map(len, channels))

    def __call__(self, x: Float[Array, "n h w 3"]) -> list[Array]:
        x = ((x - jnp.array(SHIFT)) / jnp.array(SCALE)).astype(x.dtype)
        found, convs = [], iter(self.convs)
        for level, depth in enumerate(self.depths):
            if level:
                x = halve(x)
            for _ in range(depth):
                x = jax.nn.relu(next(convs)(x))
            found.append(x)
        return found


def halve(x: Float[Array, "n h w c"]) -> Float[Array, "n i j c"]:
    """The maximum of 2 x 2 pixels; an odd row or column at the end is left out."""
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


class LPIPS(nnx.Module):
    """The distance of each frame of two videos in [-1, 1]: squared differences of VGG's features at unit length a
    pixel, weighted by channel, mean over a map, summed over levels."""

    def __init__(self, channels: tuple[tuple[int, ...], ...] = CHANNELS, *, rngs: nnx.Rngs):
        self.vgg = VGG16(channels, rngs=rngs)
        self.heads = nnx.List([linear(level[-1], 1, bias=False, rngs=rngs) for level in channels])

    def __call__(self, a: Float[Array, "b t h w 3"], b: Float[Array, "b t h w 3"]) -> Float[Array, "b t"]:
        dtype = self.vgg.convs[0].kernel.dtype
        frames = [x.reshape(-1, *x.shape[2:]).astype(dtype) for x in (a, b)]
        total = jnp.zeros(len(frames[0]))
        for ours, theirs, head in zip(*map(self.vgg, frames), self.heads):
            apart = jnp.square(unit_length(ours) - unit_length(theirs))
            total += (apart @ head.kernel[...].astype(jnp.float32)).mean((1, 2, 3))
        return total.reshape(a.shape[:2])


def unit_length(x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
    """In fp32. The gradient is finite where all is zero, as ReLUs can make it."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(-1, keepdims=True)
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return x / (norm + 1e-10)
