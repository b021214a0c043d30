"""A flow autoencoder: a clip becomes the flow that warps its first frame into every frame, and what of it is hidden
there (Ni et al. 2023, Conditional Image-to-Video Generation with Latent Flow Diffusion Models, LFDM)."""

import dataclasses
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from vidjax.data.transforms import to_unit
from vidjax.errors import InputError, check_range
from vidjax.models.convolution import Conv
from vidjax.models.flow_layers import (
    ConvBlock,
    FrozenBatchNorm,
    PictureNorm,
    Pictures,
    ResidualBlock,
    double,
    halve,
    widths,
)
from vidjax.models.patch_pca import from_patches, to_patches
from vidjax.models.picture import PlainPicture
from vidjax.models.region_motion import BackgroundPredictor, FlowPredictor, Motion, RegionPredictor, Regions
from vidjax.models.warping import identity_grid, resize_linear, warp
from vidjax.settings import choose

CHANNELS = 3  # of what is diffused: flow (x, y) and occlusion


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """What a flow autoencoder is made of; the defaults are LFDM's, but that nothing of its slips is kept.

    width: features of the generator and the flow predictor; region_width: of the predictors of regions and background.
    blocks: levels of their hourglasses, widest: the most features in them. levels: how often the generator halves
    pictures, and so the flow's scale. pad: of the heat maps (LFDM's for MHAD and NATOPS: 0). norm: "group" in `groups`,
    or "batch" with statistics that do not train, those of a released file. affine: regions turn and grow, beside
    moving; smallest: variance of a region of one pixel, see `RegionPredictor`. corners: grids as in the released code,
    see `warping`. offset: what is diffused is how far pixels move, else where they are taken from; unit: at unit
    variance, which the run measures, else as it is.
    """

    regions: int = 10
    width: int = 64
    region_width: int = 32
    widest: int = 1024
    blocks: int = 5
    levels: int = 2
    bottleneck: int = 6
    temperature: float = 0.1
    pad: int = 3
    norm: str = "group"
    groups: int = 32
    affine: bool = True
    smallest: float = 1e-4
    corners: bool = False
    offset: bool = True
    unit: bool = True

    def __post_init__(self):
        choose(self.norm, dict.fromkeys(("group", "batch")), "config.flow.norm")
        sizes = ("regions", "width", "region_width", "widest", "blocks", "levels", "groups")
        check_range("config.flow.", 1, **{name: getattr(self, name) for name in sizes})
        check_range("config.flow.", 0, 100, bottleneck=self.bottleneck, pad=self.pad)
        check_range("config.flow.", 0, 1, smallest=self.smallest)
        check_range("config.flow.", 1e-4, 1e4, temperature=self.temperature)
        for dim in (self.width, self.region_width, self.widest):
            if self.norm == "group" and dim % self.groups:
                raise InputError(
                    f"config.flow: {dim} features cannot be split into groups={self.groups}; change either"
                )

    def make_norm(self, dim: int, rngs: nnx.Rngs) -> Any:
        """Makes the norm of so many features."""
        return PictureNorm(dim, self.groups, rngs=rngs) if self.norm == "group" else FrozenBatchNorm(dim, rngs=rngs)


class Generator(nnx.Module):
    """Warps a picture's features at every scale, hides what is occluded, and paints there what is missing."""

    def __init__(self, config: FlowConfig, *, rngs: nnx.Rngs):
        dims = widths(config.width, config.levels, config.widest)
        make = config.make_norm
        self.flow = FlowPredictor(
            config.regions,
            config.width,
            config.blocks,
            config.widest,
            make,
            factor=2**config.levels,
            corners=config.corners,
            rngs=rngs,
        )
        self.conv_in = ConvBlock(3, dims[0], make, 7, rngs=rngs)
        self.down = nnx.List([ConvBlock(a, b, make, rngs=rngs) for a, b in pairwise(dims)])
        self.mid = nnx.List([ResidualBlock(dims[-1], make, rngs=rngs) for _ in range(config.bottleneck)])
        self.up = nnx.List([ConvBlock(b, a, make, rngs=rngs) for a, b in reversed(list(pairwise(dims)))])
        self.conv_out = Conv(dims[0], 3, (7, 7), rngs=rngs)
        self.corners = config.corners

    def features(self, source: Pictures) -> list[Pictures]:
        """Features of pictures from 0 to 1 at every scale, the smallest last."""
        found = [self.conv_in(source)]
        for block in self.down:
            found.append(halve(block(found[-1])))
        return found

    def paint(self, source: Pictures, motion: Motion) -> Pictures:
        """Pictures from 0 to 1 that motion makes of the source."""
        features = self.features(source)

        def shown(x: Pictures) -> tuple[Pictures, Pictures]:
            return warp(x, motion.grid, self.corners), resize_linear(motion.occlusion, x.shape[1:3]).astype(x.dtype)

        moved, seen = shown(features[-1])
        x = moved * seen
        for block in self.mid:
            x = block(x)
        for block in (*self.up, None):
            moved, seen = shown(features.pop())
            x = moved * seen + x * (1 - seen)
            if block is not None:
                x = block(double(x))
        moved, seen = shown(source)
        return moved * seen + jax.nn.sigmoid(self.conv_out(x)) * (1 - seen)


class FlowAutoencoder(nnx.Module):
    """Region motion, and the generator that warps by it. Pictures are in [-1, 1] outside, as everywhere."""

    latent_channels = CHANNELS

    def __init__(self, config: FlowConfig, *, rngs: nnx.Rngs):
        self.config, self.strides = config, (1, 2**config.levels, 2**config.levels)
        sizes = (config.region_width, config.blocks, config.widest, config.make_norm)
        self.regions = RegionPredictor(
            config.regions,
            *sizes,
            factor=2**config.levels,
            temperature=config.temperature,
            pad=config.pad,
            smallest=config.smallest,
            affine=config.affine,
            corners=config.corners,
            rngs=rngs,
        )
        self.background = BackgroundPredictor(*sizes, rngs=rngs)
        self.generator = Generator(config, rngs=rngs)

    @property
    def dtype(self) -> jnp.dtype:
        """That of the parameters."""
        return self.generator.conv_out.kernel.dtype

    @property
    def feature_channels(self) -> int:
        """Of `features`."""
        return widths(self.config.width, self.config.levels, self.config.widest)[-1]

    @property
    def multiple(self) -> int:
        """What height and width of pictures are multiples of, so that the hourglasses halve them evenly."""
        return 2 ** (self.config.levels + self.config.blocks)

    def check(self, height: int, width: int) -> None:
        """Raises InputError for pictures that the hourglasses cannot halve evenly."""
        if height % self.multiple or width % self.multiple:
            raise InputError(
                f"pictures of {height}x{width} do not halve config.flow.levels + config.flow.blocks = "
                f"{self.config.levels + self.config.blocks} times: take multiples of {self.multiple}, or fewer blocks"
            )

    def find(self, x: Pictures) -> Regions:
        """The regions of pictures in [-1, 1]."""
        self.check(*x.shape[1:3])
        return self.regions((x + 1) / 2)

    def motion(self, source: Pictures, driving: Pictures, of_source: Regions, of_driving: Regions) -> Motion:
        """What moves the source to where the driving pictures are."""
        source, driving = (source + 1) / 2, (driving + 1) / 2
        return self.generator.flow(source, of_source, of_driving, self.background(source, driving))

    def paint(self, source: Pictures, motion: Motion) -> Pictures:
        """The source moved, in [-1, 1]."""
        return 2 * self.generator.paint((source + 1) / 2, motion) - 1

    def features(self, source: Pictures) -> Float[Array, "n i j f"]:
        """The generator's features at the scale of the flow: what the diffusion sees of the first frame."""
        return self.generator.features((source + 1) / 2)[-1]

    def encode(self, x: Float[Array, "b t h w 3"]) -> Float[Array, "b t i j 3"]:
        """Flow from each frame to the first one, and occlusion, both from -1 to 1, of videos in [-1, 1]."""
        b, t = x.shape[:2]
        frames = x.reshape(-1, *x.shape[2:])
        first = lambda tree: jax.tree.map(lambda a: a[::t].repeat(t, 0), tree)
        regions = self.find(frames)
        motion = self.motion(first(frames), frames, first(regions), regions)
        grid = motion.grid - identity_grid(*motion.grid.shape[1:3], self.config.corners) * self.config.offset
        z = jnp.concatenate([grid, 2 * motion.occlusion - 1], -1)
        return z.reshape(b, t, *z.shape[1:])

    def decode(self, z: Float[Array, "b t i j 3"], first: Pictures) -> Float[Array, "b t h w 3"]:
        """Videos in [-1, 1] of their first frames and what `encode` returns."""
        b, t, i, j, _ = z.shape
        z = z.reshape(b * t, i, j, CHANNELS).astype(jnp.float32)
        grid = z[..., :2] + identity_grid(i, j, self.config.corners) * self.config.offset
        motion = Motion(grid, jnp.clip((z[..., 2:] + 1) / 2, 0, 1))
        painted = self.paint(first.repeat(t, 0), motion)
        return painted.reshape(b, t, *painted.shape[1:])


class FlowCodec(nnx.Module):
    """A flow autoencoder, and what makes each channel of its flow zero-mean and of unit variance: scale (z + shift).

    A video is decoded from its flow and its first frame, which `beside` lays beside the flow's channels.
    """

    def __init__(
        self,
        autoencoder: FlowAutoencoder,
        shift: tuple[float, ...] = (0.0,) * CHANNELS,
        scale: tuple[float, ...] = (1.0,) * CHANNELS,
    ):
        self.autoencoder, self.shift, self.scale = autoencoder, tuple(shift), tuple(scale)

    @property
    def dtype(self) -> jnp.dtype:
        """That of the autoencoder's parameters."""
        return self.autoencoder.dtype

    def per_frame(self, part: str) -> bool:
        """Whether the "encoder" or the "decoder" takes every frame by itself: the first frame goes with all."""
        return part == "decoder"

    def latents(self, video: UInt8[Array, "b t h w 3"], normal: Any = None) -> Float[Array, "b t i j 3"]:
        """Flow and occlusion of videos of pixels 0 to 255; there is nothing random in them."""
        z = self.autoencoder.encode(to_unit(video).astype(self.dtype))
        return jnp.array(self.scale) * (z + jnp.array(self.shift))

    def beside(
        self, latents: Float[Array, "b t i j 3"], pictures: UInt8[Array, "b h w 3"]
    ) -> Float[Array, "b t i j z"]:
        """Lays pictures, in patches, beside the channels of the flow that warps them."""
        patches = to_patches(to_unit(pictures)[:, None], self.autoencoder.strides)
        return jnp.concatenate([latents, jnp.broadcast_to(patches, (*latents.shape[:-1], patches.shape[-1]))], -1)

    def decode(self, z: Float[Array, "b t i j z"]) -> Float[Array, "b t h w 3"]:
        """Returns the videos in [-1, 1] of latents that have their first frames beside them. Raises InputError for
        latents without."""
        if z.shape[-1] == CHANNELS:
            raise InputError("this model warps a picture and has none: give it one, --image")
        first = from_patches(z[:, :1, ..., CHANNELS:], self.autoencoder.strides)[:, 0]
        flow = z[..., :CHANNELS].astype(jnp.float32) / jnp.array(self.scale) - jnp.array(self.shift)
        return self.autoencoder.decode(flow, first)


class SourceEmbedder(PlainPicture):
    """The first frame as a condition: the flow autoencoder's features of it, beside the noisy flow of every frame."""

    vector_dim, tokens_dim = None, None

    def null(self, picture: Mapping[str, Array]) -> Mapping[str, Array]:
        """Guidance does not steer away from it."""
        return picture

    def __call__(self, picture: Mapping[str, Array]) -> dict[str, Array]:
        return {"concat": picture["features"][:, None]}

    def entry(self, codec: FlowCodec, frame: UInt8[Array, "b h w 3"]) -> dict[str, Array]:
        """Makes the entry of a batch for pictures."""
        return {"features": codec.autoencoder.features(to_unit(frame).astype(codec.dtype)).astype(jnp.float32)}
