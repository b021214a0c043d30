"""Motion by regions: where parts of a picture are and how they lie, and the flow that moves them (Siarohin et al. 2021,
Motion Representations for Articulated Animation, MRAA)."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vidjax.models.convolution import Conv
from vidjax.models.flow_layers import Down, Hourglass, MakeNorm, Pictures
from vidjax.models.layers import linear
from vidjax.models.warping import identity_grid, sample_grid, shrink

ROUND = 1e-12  # squared difference of variances, relative to their sum, under which a region has no direction


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Regions:
    """Regions of pictures: their centres (x, y), the matrices that map a unit circle to their ellipses, and the
    covariances of their pixels."""

    center: Float[Array, "n k 2"]
    affine: Float[Array, "n k 2 2"]
    covariance: Float[Array, "n k 2 2"]


class Motion(NamedTuple):
    """Where each pixel is taken from, and how much of it is to be seen there (occlusion 0: nothing)."""

    grid: Float[Array, "n i j 2"]
    occlusion: Float[Array, "n i j 1"]


@contextlib.contextmanager
def geometry() -> Iterator[None]:
    """Around products of places, of two numbers each: they are of fp32, which accelerators would round to 8 or 11 bits,
    a quarter of a pixel and more. Programs name them so."""
    with jax.named_scope("geometry"), jax.default_matmul_precision("highest"):
        yield


def inverse(m: Float[Array, "*s 2 2"]) -> Float[Array, "*s 2 2"]:
    """The inverse of 2 x 2 matrices."""
    (a, b), (c, d) = (jnp.moveaxis(m[..., row, :], -1, 0) for row in (0, 1))
    rows = jnp.stack([jnp.stack([d, -b], -1), jnp.stack([-c, a], -1)], -2)
    return rows / (a * d - b * c)[..., None, None]


def principal_axes(covariance: Float[Array, "*s 2 2"]) -> Float[Array, "*s 2 2"]:
    """A with A A^T = covariance, its columns the principal axes, the longer one first, their lengths the deviations.

    U sqrt(S) of the singular value decomposition, in closed form: U turns by half the angle of (a - d, 2b). Signs are
    those of LAPACK's but for that of the whole. Where the two variances are equal the axes are those of the picture,
    and no gradient goes through their direction.
    """
    a, b, d = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    middle, half = (a + d) / 2, (a - d) / 2
    square = half**2 + b**2
    turned = square > ROUND * middle**2
    radius = jnp.sqrt(jnp.where(turned, square, 1.0))
    angle = jnp.arctan2(jnp.where(turned, b, 0.0), jnp.where(turned, half, 1.0)) / 2
    radius = jnp.where(turned, radius, 0.0)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # l1 l2 = det: the smaller variance is what is left of the product, exact where it is much smaller
    longer = middle + radius
    shorter = jnp.maximum(a * d - b**2, 0.0) / longer
    shorter = jnp.sqrt(jnp.maximum(shorter, jnp.finfo(a.dtype).tiny))
    longer = jnp.sqrt(longer)
    rows = [jnp.stack([-cos * longer, -sin * shorter], -1), jnp.stack([-sin * longer, cos * shorter], -1)]
    return jnp.stack(rows, -2)


def upright(m: Float[Array, "*s 2 2"]) -> Float[Array, "*s 2 2"]:
    """The matrix of m and -m whose first number is not negative: the axes of an ellipse have no sign."""
    return m * jnp.where(m[..., :1, :1] < 0, -1.0, 1.0)


class RegionPredictor(nnx.Module):
    """Finds `regions` regions in pictures from 0 to 1, without knowing what they are.

    Each is a heat map, a softmax over all pixels of the picture at 1 / `factor`, with its mean and covariance.
    smallest: variance that every region has beyond that, so that one of a single pixel has an inverse. `affine` false:
    regions move but neither turn nor grow.
    """

    def __init__(
        self,
        regions: int,
        width: int,
        levels: int,
        most: int,
        make_norm: MakeNorm,
        *,
        factor: int,
        temperature: float,
        pad: int,
        smallest: float,
        affine: bool,
        corners: bool,
        rngs: nnx.Rngs,
    ):
        self.hourglass = Hourglass(3, width, levels, most, make_norm, rngs=rngs)
        self.heat = Conv(self.hourglass.features, regions, (7, 7), padding=[(pad, pad)] * 2, rngs=rngs)
        self.factor, self.temperature, self.smallest = factor, temperature, smallest
        self.affine, self.corners = affine, corners

    def __call__(self, x: Pictures) -> Regions:
        heat = self.heat(self.hourglass(shrink(x, self.factor, self.corners))).astype(jnp.float32)
        n, h, w, k = heat.shape
        heat = jax.nn.softmax(heat.reshape(n, h * w, k) / self.temperature, 1)
        places = identity_grid(h, w, self.corners).reshape(-1, 2)
        with geometry():
            center = jnp.einsum("npk,pd->nkd", heat, places)
            away = places - center[:, :, None]
            covariance = jnp.einsum("npk,nkpd,nkpe->nkde", heat, away, away) + self.smallest * jnp.eye(2)
        affine = principal_axes(covariance) if self.affine else jnp.broadcast_to(jnp.eye(2), covariance.shape)
        return Regions(center, affine, covariance)


class BackgroundPredictor(nnx.Module):
    """Finds the affine map [A | b] from places of the background in one picture to those in another; the identity at
    the start."""

    def __init__(self, width: int, levels: int, most: int, make_norm: MakeNorm, *, rngs: nnx.Rngs):
        self.encoder = Down(6, width, levels, most, make_norm, rngs=rngs)
        self.out = linear(min(most, width * 2**levels), 6, zero=True, rngs=rngs)
        assert self.out.bias is not None
        self.out.bias.set_value(jnp.array([1.0, 0, 0, 0, 1, 0]))

    def __call__(self, source: Pictures, driving: Pictures) -> Float[Array, "n 2 3"]:
        found = self.encoder(jnp.concatenate([source, driving], -1))[-1]
        return self.out(found.mean((1, 2))).astype(jnp.float32).reshape(-1, 2, 3)


class FlowPredictor(nnx.Module):
    """Weighs the motions of regions and background at every pixel, and says where the source shows nothing of use."""

    def __init__(
        self,
        regions: int,
        width: int,
        levels: int,
        most: int,
        make_norm: MakeNorm,
        *,
        factor: int,
        corners: bool,
        rngs: nnx.Rngs,
    ):
        self.hourglass = Hourglass(4 * (regions + 1), width, levels, most, make_norm, rngs=rngs)
        self.weights = Conv(self.hourglass.features, regions + 1, (7, 7), rngs=rngs)
        self.occlusion = Conv(self.hourglass.features, 1, (7, 7), rngs=rngs)
        self.factor, self.corners = factor, corners

    def __call__(
        self, source: Pictures, of_source: Regions, of_driving: Regions, background: Float[Array, "n 2 3"]
    ) -> Motion:
        small = shrink(source, self.factor, self.corners)
        n, h, w, _ = small.shape
        places = identity_grid(h, w, self.corners)
        candidates = motions(places, of_source, of_driving, background)
        heat = heat_maps(places, of_driving) - heat_maps(places, of_source)
        heat = jnp.pad(heat, ((0, 0), (1, 0), (0, 0), (0, 0)))[..., None]
        k = candidates.shape[1]
        fold = lambda a: a.reshape(n * k, *a.shape[2:])
        moved = sample_grid(small.repeat(k, 0), fold(candidates)).reshape(n, k, h, w, 3)
        seen = jnp.concatenate([heat.astype(small.dtype), moved], -1)
        features = self.hourglass(jnp.moveaxis(seen, 1, 3).reshape(n, h, w, 4 * k))
        weights = jax.nn.softmax(self.weights(features).astype(jnp.float32), -1)
        with geometry():
            grid = jnp.einsum("nhwk,nkhwd->nhwd", weights, candidates)
        return Motion(grid, jax.nn.sigmoid(self.occlusion(features).astype(jnp.float32)))


@geometry()
def motions(
    places: Float[Array, "h w 2"], source: Regions, driving: Regions, background: Float[Array, "n 2 3"]
) -> Float[Array, "n m h w 2"]:
    """Where each place would be taken from if it moved with the background, and with each of k regions."""
    affine = upright(source.affine @ inverse(driving.affine))
    away = places - driving.center[:, :, None, None]
    regions = jnp.einsum("nkde,nkhwe->nkhwd", affine, away) + source.center[:, :, None, None]
    behind = jnp.einsum("nde,hwe->nhwd", background[..., :2], places) + background[:, None, None, :, 2]
    return jnp.concatenate([behind[:, None], regions], 1)


@geometry()
def heat_maps(places: Float[Array, "h w 2"], regions: Regions) -> Float[Array, "n k h w"]:
    """Gaussians of height 1 where the regions are."""
    away = places - regions.center[:, :, None, None]
    return jnp.exp(-0.5 * jnp.einsum("nkhwd,nkde,nkhwe->nkhw", away, inverse(regions.covariance), away))
