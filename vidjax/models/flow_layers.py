"""What the networks of a flow autoencoder are made of: convolution, norm, ReLU; and an hourglass of them."""

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vidjax.models.convolution import Conv
from vidjax.models.initial import constant
from vidjax.models.layers import Context, GroupNorm

Pictures = Float[Array, "_n _h _w _c"]
MakeNorm = Callable[[int, nnx.Rngs], Callable[[Pictures], Pictures]]  # of so many features


class FrozenBatchNorm(nnx.Module):
    """Batch normalisation by statistics that are parameters without a gradient, `mean` and `variance`: what networks of
    torch compute in evaluation."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.scale, self.bias = nnx.Param(constant(1, dim)), nnx.Param(constant(0, dim))
        self.mean, self.variance = nnx.Param(constant(0, dim)), nnx.Param(constant(1, dim))

    def __call__(self, x: Pictures) -> Pictures:
        mean, variance = jax.lax.stop_gradient((self.mean[...], self.variance[...]))
        slope = self.scale[...] * jax.lax.rsqrt(variance + 1e-5)
        return x * slope + (self.bias[...] - mean * slope)


class PictureNorm(GroupNorm):
    """Group normalisation of pictures, each by itself."""

    def __call__(self, x: Pictures) -> Pictures:
        return super().__call__(x[:, None], Context(x[:, :1, 0, 0]))[:, 0]


class ConvBlock(nnx.Module):
    """A convolution that keeps the size, a norm, ReLU."""

    def __init__(self, cin: int, cout: int, make_norm: MakeNorm, kernel: int = 3, *, rngs: nnx.Rngs):
        self.conv = Conv(cin, cout, (kernel, kernel), rngs=rngs)
        self.norm = make_norm(cout, rngs)

    def __call__(self, x: Pictures) -> Pictures:
        return jax.nn.relu(self.norm(self.conv(x)))


class ResidualBlock(nnx.Module):
    """Norm, ReLU, convolution twice beside the identity."""

    def __init__(self, dim: int, make_norm: MakeNorm, *, rngs: nnx.Rngs):
        self.norms = nnx.List([make_norm(dim, rngs) for _ in range(2)])
        self.convs = nnx.List([Conv(dim, dim, rngs=rngs) for _ in range(2)])

    def __call__(self, x: Pictures) -> Pictures:
        h = x
        for norm, conv in zip(self.norms, self.convs):
            h = conv(jax.nn.relu(norm(h)))
        return x + h


def halve(x: Pictures) -> Float[Array, "n i j c"]:
    """The mean of 2 x 2 pixels; an odd row or column at the end is left out."""
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))


def double(x: Pictures) -> Float[Array, "n i j c"]:
    """Every pixel four times."""
    return x.repeat(2, 1).repeat(2, 2)


def widths(width: int, levels: int, most: int) -> list[int]:
    """Features before, between and after so many levels, each twice those of the one before, up to `most`."""
    return [min(most, width * 2**level) for level in range(levels + 1)]


class Down(nnx.Module):
    """Levels of a ConvBlock and half the size; the features of each are in its result, the input first."""

    def __init__(self, cin: int, width: int, levels: int, most: int, make_norm: MakeNorm, *, rngs: nnx.Rngs):
        dims = [cin, *widths(width, levels, most)[1:]]
        self.blocks = nnx.List([ConvBlock(a, b, make_norm, rngs=rngs) for a, b in pairwise(dims)])

    def __call__(self, x: Pictures) -> list[Pictures]:
        found = [x]
        for block in self.blocks:
            found.append(halve(block(found[-1])))
        return found


class Hourglass(nnx.Module):
    """Down, and up again beside what came down; `width` features and the input's own come out."""

    def __init__(self, cin: int, width: int, levels: int, most: int, make_norm: MakeNorm, *, rngs: nnx.Rngs):
        self.down = Down(cin, width, levels, most, make_norm, rngs=rngs)
        dims = widths(width, levels, most)[::-1]
        self.up = nnx.List(
            [ConvBlock(a * (2 if i else 1), b, make_norm, rngs=rngs) for i, (a, b) in enumerate(pairwise(dims))]
        )
        self.features = dims[-1] + cin

    def __call__(self, x: Pictures) -> Pictures:
        *beside, x = self.down(x)
        for block in self.up:
            x = jnp.concatenate([block(double(x)), beside.pop()], -1)
        return x
