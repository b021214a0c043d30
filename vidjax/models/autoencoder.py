"""One KL autoencoder for images and videos; its configuration decides whose."""

import dataclasses
from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vidjax.errors import InputError, check_range
from vidjax.models.attention import Attention, OnTokens
from vidjax.models.autoencoder_layers import Halve, Kernel, ResBlock, Shrink, Stretch
from vidjax.models.convolution import Conv
from vidjax.models.layers import Context, GroupNorm, Over, Sequential, Upsample, linear, silu_norm
from vidjax.models.patch_pca import PatchPCA, Strides, from_patches, to_patches
from vidjax.models.temporal import Blend


def strides(steps: Sequence[Strides]) -> Strides:
    """The product of steps along (t, h, w)."""
    t, h, w = (prod(along) for along in zip(*steps))
    return t, h, w


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Levels from fine to coarse; between two of them the map shrinks by `steps`. The defaults are the quick `PATCHES`.

    blocks: residual blocks a level, the first of them brings the level's channels.
    patch: pixels (t, h, w) that become one position's features before the first level. linear: a linear path runs
    beside encoder and decoder and the network starts at zero: the whole is its linear path at first (see `start_at`).
    resample: "nearest" halves and doubles (h, w) as Stable Diffusion does; "transposed" is LVDM's, whose decoder has
    neither a first convolution nor a last norm, and whose `decoder_channels` end with the latents' own number.
    decoder_blend: Stable Video Diffusion's decoder, in which every residual block is blended with one over time, a
    convolution over time comes last, and latents go in as they are, without `post_quant_conv`.
    """

    latent_channels: int = 16
    channels: tuple[int, ...] = (128,)
    blocks: tuple[int, ...] = (2,)
    decoder_channels: tuple[int, ...] | None = None  # as `channels`
    decoder_blocks: tuple[int, ...] = (3,)
    steps: tuple[Strides, ...] = ()
    decoder_steps: tuple[Strides, ...] | None = None  # as `steps`
    patch: Strides = (2, 8, 8)
    kernels: tuple[Kernel, Kernel] = ((3, 3), (3, 1, 1))
    resample: Literal["nearest", "transposed"] = "nearest"
    attention: bool = False  # in the middle, within frames
    linear: bool = True
    groups: int = 32
    norm_over: Over = "frame"
    mode: Literal["zeros", "edge"] = "zeros"
    decoder_blend: bool = False
    in_channels: int = 3

    def __post_init__(self):
        levels = len(self.channels)
        if not levels:
            raise InputError("autoencoder.channels is empty: give the features of each level, such as (128,)")
        for name in ("latent_channels", "channels", "decoder_channels", "patch", "groups", "in_channels"):
            check_range("autoencoder.", 1, **{name: getattr(self, name)})
        check_range("autoencoder.", 0, 64, blocks=self.blocks, decoder_blocks=self.decoder_blocks)
        for step in (*self.steps, *(self.decoder_steps or ())):
            check_range("autoencoder.", 1, steps=step)
        for name in ("blocks", "decoder_blocks", "decoder_channels"):
            value = getattr(self, name)
            if value is not None and len(value) != levels:
                raise InputError(f"autoencoder.{name}={value} has {len(value)} levels, channels has {levels}")
        if len(self.steps) != levels - 1:
            raise InputError(f"autoencoder.steps={self.steps}: {levels} levels need {levels - 1} of them")
        backwards = self.steps if self.decoder_steps is None else self.decoder_steps
        if len(backwards) != levels - 1 or strides((self.patch, *backwards)) != self.strides:
            raise InputError(f"autoencoder.decoder_steps={backwards} do not undo steps={self.steps}")
        if self.resample == "nearest" and any(tuple(step) != (1, 2, 2) for step in (*self.steps, *backwards)):
            raise InputError(f"autoencoder.steps={self.steps}: resample='nearest' takes (1, 2, 2) only")

    @property
    def strides(self) -> Strides:
        """Pixels a latent along (t, h, w)."""
        return strides((self.patch, *self.steps))

    @property
    def outer_kernel(self) -> Kernel:
        """Of the convolutions next to the pixels: those on patches need not look at their neighbours."""
        return self.kernels[0] if self.patch == (1, 1, 1) else (1, 1)


PATCHES = AutoencoderConfig()
LVDM = AutoencoderConfig(  # He et al. 2022
    latent_channels=4,
    channels=(32, 64, 128, 256),
    blocks=(0, 1, 1, 1),
    decoder_channels=(64, 128, 256, 4),
    decoder_blocks=(2, 2, 2, 0),
    steps=((2, 2, 2), (2, 2, 2), (1, 2, 2)),
    decoder_steps=((1, 2, 2), (2, 2, 2), (2, 2, 2)),  # time first on both ways
    patch=(1, 1, 1),
    kernels=((3, 3, 3), (3, 3, 3)),
    resample="transposed",
    linear=False,
    norm_over="clip",
    mode="edge",
)
STABLE_DIFFUSION = AutoencoderConfig(  # Rombach et al. 2022
    latent_channels=4,
    channels=(128, 256, 512, 512),
    blocks=(2, 2, 2, 2),
    decoder_blocks=(3, 3, 3, 3),
    steps=((1, 2, 2),) * 3,
    patch=(1, 1, 1),
    kernels=((3, 3), (3, 3)),
    attention=True,
    linear=False,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Posterior:
    """q(z | x) = N(mean, exp(logvar)), independent in every element; logvar is kept within [-30, 20]."""

    mean: Float[Array, "b s i j z"]
    logvar: Float[Array, "b s i j z"]

    @property
    def mode(self) -> Float[Array, "b s i j z"]:
        """The likeliest latents, the mean."""
        return self.mean

    def sample(self, noise: Float[Array, "b s i j z"]) -> Float[Array, "b s i j z"]:
        """mean + std noise, with standard normal noise (Kingma & Welling 2014, section 2.4)."""
        return self.mean + jnp.exp(0.5 * self.logvar) * noise

    def kl(self) -> Float[Array, " b"]:
        """KL(q || N(0, 1)) of each example in nats, summed over elements (Kingma & Welling 2014, appendix B)."""
        mean, logvar = self.mean.astype(jnp.float32), self.logvar.astype(jnp.float32)
        return 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).sum((1, 2, 3, 4))


class Autoencoder(nnx.Module):
    """Videos [b, t, h, w, c] in [-1, 1] to a posterior over latents [b, s, i, j, z] and back.

    Parameter paths follow diffusers' AutoencoderKL (weights/diffusers_autoencoder.py); LVDM's figures are those of its
    released configuration. Frames are independent of each other with kernels of two numbers, so images have t = 1.
    """

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        z, pixels = config.latent_channels, config.in_channels
        self.encoder, self.decoder = Encoder(config, rngs=rngs), Decoder(config, rngs=rngs)
        if config.linear:
            features = pixels * prod(config.strides)
            self.linear_in = linear(features, z, rngs=rngs)
            self.linear_out = linear(z, features, rngs=rngs)
        else:
            self.quant_conv = linear(2 * z, 2 * z, rngs=rngs)
            if not config.decoder_blend:
                self.post_quant_conv = linear(z, z, rngs=rngs)

    @property
    def strides(self) -> Strides:
        """Pixels per latent along (t, h, w)."""
        return self.config.strides

    @property
    def latent_channels(self) -> int:
        """Features of a latent."""
        return self.config.latent_channels

    @property
    def dtype(self) -> jnp.dtype:
        """That of the parameters, in which it computes whatever it is given."""
        return self.decoder.conv_out.kernel.dtype

    def encode(self, x: Float[Array, "b t h w c"]) -> Posterior:
        """Raises InputError if the strides do not divide (t, h, w)."""
        check_size(x.shape[1:4], self.strides)
        x = x.astype(self.dtype)
        moments = self.encoder(x)
        if not self.config.linear:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments, 2, -1)
        if self.config.linear:
            mean = mean + self.linear_in(to_patches(x, self.strides))
        return Posterior(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, z: Float[Array, "b s i j z"]) -> Float[Array, "b t h w c"]:
        """Returns the video of latents, in the dtype of the parameters."""
        return self.decode_features(z)[0]

    def decode_features(self, z: Float[Array, "b s i j z"]) -> tuple[Float[Array, "b t h w c"], Array]:
        """The video, and what the decoder's last convolution saw of it."""
        z = z.astype(self.dtype)
        direct = self.config.linear or self.config.decoder_blend
        h = self.decoder.features(z if direct else self.post_quant_conv(z))
        x = self.decoder.last(h)
        return (x + from_patches(self.linear_out(z), self.strides) if self.config.linear else x), h

    def start_at(self, pca: PatchPCA) -> None:
        """Makes the linear path that of `pca`. With the network at its zero start, decode(encode(x).mode) is then
        `pca.reconstruct(x)`. The decoder's first convolution is scaled to see every latent channel equally strong."""
        self.linear_in.kernel[...], self.linear_in.bias[...] = pca.basis, -pca.mean @ pca.basis
        self.linear_out.kernel[...], self.linear_out.bias[...] = pca.basis.T, pca.mean
        kernel = self.decoder.conv_in.kernel
        kernel[...] = kernel[...] / jnp.maximum(pca.spread, 1e-3)[:, None]


class Encoder(nnx.Module):
    """conv_in, per level residual blocks and a downsampling, the middle, and the moments (mean, logvar)."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        channels, kernel = config.channels, config.kernels[0]
        self.patch = config.patch
        pixels = config.in_channels * prod(config.patch)
        self.conv_in = Conv(pixels, channels[0], config.outer_kernel, mode=config.mode, rngs=rngs)
        self.down = nnx.List([])
        width = channels[0]
        for level, (dim, blocks) in enumerate(zip(channels, config.blocks)):
            layers = residuals(config, width, dim, blocks, rngs)
            width = dim if blocks else width
            if level < len(channels) - 1:
                if config.resample == "transposed":
                    width = channels[level + 1]
                    layers["downsample"] = Shrink(dim, width, config.steps[level], rngs=rngs)
                else:
                    layers["downsample"] = Halve(width, rngs=rngs)
            self.down.append(Sequential(**layers))
        self.mid = middle(config, width, rngs)
        self.norm_out = GroupNorm(width, config.groups, 1e-6, config.norm_over, rngs=rngs)
        z = config.latent_channels
        self.conv_out = Conv(width, 2 * z, kernel, mode=config.mode, zero=config.linear, rngs=rngs)
        if config.linear:  # samples start 1 / 12 of a pixel unit around their mean
            self.conv_out.bias[...] = jnp.repeat(jnp.array([0.0, -5.0]), z)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b s i j m"]:
        ctx = timeless(x)
        h = self.conv_in(to_patches(x, self.patch))
        for layer in (*self.down, self.mid):
            h = layer(h, ctx)
        return self.conv_out(silu_norm(self.norm_out, h, ctx))


class Decoder(nnx.Module):
    """The levels backwards: the middle, residual blocks and an upsampling per level, pixels."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        channels, kernel = (config.decoder_channels or config.channels)[::-1], config.kernels[0]
        transposed = config.resample == "transposed"
        steps = (config.steps if config.decoder_steps is None else config.decoder_steps)[::-1]
        self.patch = config.patch
        conv_in = None if transposed else Conv(config.latent_channels, channels[0], kernel, mode=config.mode, rngs=rngs)
        self.conv_in = nnx.data(conv_in)
        self.mid = middle(config, channels[0], rngs, config.decoder_blend)
        self.up = nnx.List([])
        width = channels[0]
        for level, (dim, blocks) in enumerate(zip(channels, config.decoder_blocks[::-1])):
            layers = residuals(config, width, dim, blocks, rngs, config.decoder_blend)
            width = dim if blocks else width
            if level < len(channels) - 1:
                if transposed:
                    width = channels[level + 1]
                    layers["upsample"] = Stretch(dim, width, steps[level], rngs=rngs)
                else:
                    layers["upsample"] = Upsample(width, rngs=rngs)
            self.up.append(Sequential(**layers))
        norm_out = None if transposed else GroupNorm(width, config.groups, 1e-6, config.norm_over, rngs=rngs)
        self.norm_out = nnx.data(norm_out)
        pixels = config.in_channels * prod(config.patch)
        self.conv_out = Conv(width, pixels, config.outer_kernel, mode=config.mode, zero=config.linear, rngs=rngs)
        self.time_conv_out = nnx.data(Conv(pixels, pixels, (3, 1, 1), rngs=rngs) if config.decoder_blend else None)

    def __call__(self, z: Float[Array, "b s i j z"]) -> Float[Array, "b t h w c"]:
        return self.last(self.features(z))

    def features(self, z: Float[Array, "b s i j z"]) -> Float[Array, "b f p q d"]:
        """What the last convolution sees."""
        ctx = timeless(z)
        h = z if self.conv_in is None else self.conv_in(z)
        for layer in (self.mid, *self.up):
            h = layer(h, ctx)
        return h if self.norm_out is None else silu_norm(self.norm_out, h, ctx)

    def last(self, h: Float[Array, "b f p q d"]) -> Float[Array, "b t h w c"]:
        """Applies the last convolution, to pixels, and one over time where there is one."""
        x = self.conv_out(h)
        return from_patches(x if self.time_conv_out is None else self.time_conv_out(x), self.patch)


def residuals(
    config: AutoencoderConfig, cin: int, cout: int, blocks: int, rngs: nnx.Rngs, blend: bool = False
) -> dict[str, Any]:
    """Makes the residual blocks of one level by name; the first of them changes the number of features. `blend`: each
    is followed by one over time, which it is blended with."""
    options: dict[str, Any] = dict(
        kernels=config.kernels, groups=config.groups, norm_over=config.norm_over, mode=config.mode
    )
    layers: dict[str, Any] = {}
    for i in range(blocks):
        layers[f"resnet_{i}"] = ResBlock(cout if i else cin, cout, **options, rngs=rngs)
        if blend:
            kernels = ((3, 1, 1), (3, 1, 1))
            over_time = ResBlock(cout, cout, kernels, config.groups, "clip", eps=1e-5, rngs=rngs)
            layers[f"temporal_{i}"] = Blend(over_time, 0.0, switched=True)
    return layers


def middle(config: AutoencoderConfig, dim: int, rngs: nnx.Rngs, blend: bool = False) -> Sequential:
    """Block, one-headed attention within frames, block; or nothing."""
    if not config.attention:
        return Sequential()
    layers = residuals(config, dim, dim, 2, rngs, blend)
    norm = GroupNorm(dim, config.groups, 1e-6, rngs=rngs)
    attention = OnTokens(Attention(dim, 1, norm=norm, bias=True, rngs=rngs))
    before = [name for name in layers if name.endswith("_0")]
    first = {name: layers.pop(name) for name in before}
    return Sequential(**first, attention=attention, **layers)


def timeless(x: Array) -> Context:
    """The context of layers that know no diffusion time."""
    return Context(emb=jnp.zeros((*x.shape[:2], 0), x.dtype))


def check_size(size: tuple[int, ...], strides: Strides) -> None:
    """Raises InputError, with the nearest sizes that work, if the strides do not divide (frames, height, width)."""
    if any(n % s for n, s in zip(size, strides)):
        below, above = (
            tuple(max(s, (n + up) // s * s) for n, s, up in zip(size, strides, ups))
            for ups in ((0, 0, 0), tuple(s - 1 for s in strides))
        )
        raise InputError(
            f"{size[0]} frames of {size[1]}x{size[2]} do not divide by the autoencoder's strides {strides}: "
            f"take {below[0]} frames of {below[1]}x{below[2]} or {above[0]} of {above[1]}x{above[2]}"
        )
