"""The U-Net of LFDM's released diffusion (Ni et al. 2023): that of video-diffusion-pytorch, after Ho et al. 2022, with
a condition beside the time embedding and an output of its own for flow and for occlusion.

Each level has two residual blocks, attention over the pixels of a frame that is linear in their number, and attention
over time with rotary places and a bias for each distance, which all layers share.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from vidjax.errors import InputError, check_range
from vidjax.models.convolution import Conv, ConvTranspose
from vidjax.models.kernels.attention import attend
from vidjax.models.kernels.placement import to_frames, to_pixels
from vidjax.models.kernels.products import gelu
from vidjax.models.layers import MLP, Context, GroupNorm, LayerNorm, linear, silu_norm
from vidjax.models.unet import REMAT

BUCKETS = DISTANCE = 32  # biases, half for each direction; from `DISTANCE` frames on they are one
PERIOD = 10_000.0
Video = Float[Array, "b t _h _w _c"]
Heads = Float[Array, "... n k d"]
Places = tuple[Float[Array, "t r"], Float[Array, "k t t"]]  # angles of rotation, bias of each head


@dataclasses.dataclass(frozen=True)
class FlowUNetConfig:
    """What the U-Net is made of; the defaults are those of LFDM's released files for MUG and MHAD.

    out_channels: flow's, and one of occlusion. heads, head_dim: of every attention. vector_dim: width of the condition.
    transposed: maps grow by transposed convolutions, else by nearest neighbours and a convolution whose
    border is reflected (NATOPS). Raises InputError where the numbers do not fit each other.
    """

    in_channels: int = 3 + 256
    out_channels: int = 2 + 1
    channels: Sequence[int] = (64, 128, 256, 512)
    heads: int = 8
    head_dim: int = 32
    groups: int = 8
    vector_dim: int | None = 768
    transposed: bool = True
    patch = 1

    def __post_init__(self):
        object.__setattr__(self, "channels", tuple(self.channels))
        sizes = ("in_channels", "channels", "heads", "groups")
        check_range("config.model.", 1, **{name: getattr(self, name) for name in sizes})
        check_range("config.model.", 2, out_channels=self.out_channels, head_dim=self.head_dim)
        for dim in self.channels:
            if dim % self.groups:
                raise InputError(f"config.model: {dim} channels cannot be split into groups={self.groups}")
        if self.channels[0] < 4 or self.channels[0] % 2 or self.head_dim % 2:
            raise InputError(
                f"config.model: channels={self.channels} must begin with an even number from 4 on, and "
                f"head_dim={self.head_dim} be even: sines and cosines share them"
            )


def sinusoid(t: Float[Array, " *s"], dim: int) -> Float[Array, "*s {dim}"]:
    """[sin, cos] halves with periods from 2 pi to 2 pi `PERIOD`, both of which are there."""
    angles = t[..., None] * jnp.exp(-jnp.log(PERIOD) * jnp.arange(dim // 2) / (dim // 2 - 1))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def find_buckets(t: int) -> Int[np.ndarray, "{t} {t}"]:
    """Finds for each of t frames the bucket of each other one (Raffel et al. 2020, T5): one for each distance below a
    quarter of the buckets, then wider ones; the later frames' are the second half."""
    ahead = np.arange(t) - np.arange(t)[:, None]
    half = BUCKETS // 2
    near, far = half // 2, np.maximum(abs(ahead), 1).astype(np.float32)
    wide = near + (np.log(far / near) / math.log(DISTANCE / near) * (half - near)).astype(int)
    return np.where(abs(ahead) < near, abs(ahead), np.minimum(wide, half - 1)) + half * (ahead > 0)


def rotate(x: Heads, angles: Float[Array, "n r"]) -> Heads:
    """Turns the first features of each head, in pairs of neighbours, by angles (Su et al. 2021), which are fp32: of 20
    rad bf16 knows an eighth."""
    turned = 2 * angles.shape[-1]
    a, b = x[..., 0:turned:2], x[..., 1:turned:2]
    cos, sin = (turn(angles)[:, None].astype(x.dtype) for turn in (jnp.cos, jnp.sin))
    pairs = jnp.stack([a * cos - b * sin, b * cos + a * sin], -1)
    return jnp.concatenate([pairs.reshape(*a.shape[:-1], turned), x[..., turned:]], -1)


def find_angles(frequencies: Float[Array, " r"], frames: int) -> Float[Array, "n r"]:
    """Returns the angle of each frame and frequency in rad, in fp32 whatever the frequencies are."""
    return jnp.arange(frames, dtype=jnp.float32)[:, None] * jax.lax.stop_gradient(frequencies).astype(jnp.float32)


def attend_over_time(q: Heads, k: Heads, v: Heads, places: Places) -> Heads:
    """Softmax attention of frames with rotary places and biases."""
    angles, bias = places
    q, k = rotate(q * q.shape[-1] ** -0.5, angles), rotate(k, angles)
    weights = jnp.einsum("...ikd,...jkd->...kij", q, k).astype(jnp.float32) + bias
    return jnp.einsum("...kij,...jkd->...ikd", jax.nn.softmax(weights, -1).astype(v.dtype), v)


def attend_linearly(q: Heads, k: Heads, v: Heads, places: Places) -> Heads:
    """Attention whose cost is linear in the pixels (Shen et al. 2021): keys are normalised over them, queries over the
    features."""
    q, k = jax.nn.softmax(q, -1) * q.shape[-1] ** -0.5, jax.nn.softmax(k, -3)
    return jnp.einsum("...nkd,...kde->...nke", q, jnp.einsum("...nkd,...nke->...kde", k, v))


def attend_softly(q: Heads, k: Heads, v: Heads, places: Places) -> Heads:
    """Softmax attention of pixels."""
    flat = [a.reshape(-1, a.shape[-3], a.shape[-2] * a.shape[-1]) for a in (q, k, v)]
    return attend(*flat, q.shape[-1]).reshape(v.shape)


class SelfAttention(nnx.Module):
    """x + attend(norm(x)) over the frames of each pixel (`over_time`) or the pixels of each frame."""

    def __init__(self, dim: int, config: FlowUNetConfig, how: Callable, bias: bool = False, *, rngs: nnx.Rngs):
        inner = config.heads * config.head_dim
        self.norm = LayerNorm(dim, bias=False, rngs=rngs)
        self.to_qkv, self.to_out = linear(dim, 3 * inner, False, rngs=rngs), linear(inner, dim, bias, rngs=rngs)
        self.how, self.heads = how, config.heads

    def __call__(self, x: Video, places: Places) -> Video:
        over_time = self.how is attend_over_time
        tokens = rearrange(x, "b t h w c -> b t (h w) c")
        if over_time:
            tokens = to_pixels(tokens)
        h = self.norm(tokens)
        h = h.swapaxes(1, 2) if over_time else h
        parts = jnp.split(self.to_qkv(h), 3, -1)
        q, k, v = (rearrange(part, "... n (k d) -> ... n k d", k=self.heads) for part in parts)
        h = self.to_out(rearrange(self.how(q, k, v, places), "... k d -> ... (k d)"))
        tokens = to_frames(tokens + h.swapaxes(1, 2)) if over_time else tokens + h
        return tokens.reshape(x.shape)


class ResBlock(nnx.Module):
    """Convolution, GroupNorm over the clip, SiLU, twice; the embedding scales and shifts the first norm; residual."""

    def __init__(self, cin: int, cout: int, emb_dim: int | None, groups: int, *, rngs: nnx.Rngs):
        self.time_emb_proj = nnx.data(linear(emb_dim, 2 * cout, rngs=rngs) if emb_dim else None)
        self.conv1, self.conv2 = Conv(cin, cout, rngs=rngs), Conv(cout, cout, rngs=rngs)
        self.norm1, self.norm2 = (GroupNorm(cout, groups, over="clip", rngs=rngs) for _ in "12")
        self.conv_shortcut = nnx.data(linear(cin, cout, rngs=rngs) if cin != cout else None)

    def __call__(self, x: Video, emb: Float[Array, "b t e"]) -> Video:
        ctx, film = Context(emb), ()
        if self.time_emb_proj is not None:
            film = jnp.split(self.time_emb_proj(jax.nn.silu(emb))[..., None, None, :], 2, -1)
        h = silu_norm(self.norm2, self.conv2(silu_norm(self.norm1, self.conv1(x), ctx, *film)), ctx)
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Upsample(nnx.Module):
    """Nearest neighbours, then a convolution whose border is reflected."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.conv = Conv(dim, dim, padding=((0, 0), (0, 0)), rngs=rngs)

    def __call__(self, x: Video) -> Video:
        x = x.repeat(2, 2).repeat(2, 3)
        return self.conv(jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), "reflect"))


class Level(nnx.Module):
    """Two residual blocks, attention over pixels and over time: after both, or between them in the middle."""

    def __init__(self, cin: int, cout: int, emb_dim: int, config: FlowUNetConfig, mid: bool = False, *, rngs: nnx.Rngs):
        block = lambda cin: ResBlock(cin, cout, emb_dim, config.groups, rngs=rngs)
        self.resnets = nnx.List([block(cin), block(cout)])
        attention = lambda *how: SelfAttention(cout, config, *how, rngs=rngs)
        self.attn1 = attention(attend_softly) if mid else attention(attend_linearly, True)
        self.attn_temp = attention(attend_over_time)
        self.mid = mid

    def __call__(self, x: Video, emb: Array, places: Places) -> Video:
        first, second = self.resnets
        x = first(x, emb) if self.mid else second(first(x, emb), emb)
        x = self.attn_temp(self.attn1(x, places), places)
        return second(x, emb) if self.mid else x


class Output(nnx.Module):
    """A residual block without embedding and a linear layer."""

    def __init__(self, cin: int, dim: int, cout: int, groups: int, *, rngs: nnx.Rngs):
        self.resnet, self.conv = ResBlock(cin, dim, None, groups, rngs=rngs), linear(dim, cout, rngs=rngs)

    def __call__(self, x: Video, emb: Array) -> Video:
        return self.conv(self.resnet(x, emb))


class FlowUNet(nnx.Module):
    """Called as `unet.UNet` is. The frequencies of the rotation are a parameter without a gradient, as in the files."""

    def __init__(self, config: FlowUNetConfig, *, rngs: nnx.Rngs):
        self.config, channels = config, config.channels
        dim, emb = channels[0], 4 * channels[0]
        wide, last = emb + (config.vector_dim or 0), len(channels) - 1
        self.time_embedding = MLP(dim, emb, emb, act=gelu, rngs=rngs)
        turned = min(32, config.head_dim)
        self.frequencies = nnx.Param(PERIOD ** -(jnp.arange(0, turned, 2, dtype=jnp.float32) / turned))
        self.time_bias = nnx.Embed(BUCKETS, config.heads, rngs=rngs)
        self.conv_in = Conv(config.in_channels, dim, (7, 7), rngs=rngs)
        self.attn_in = SelfAttention(dim, config, attend_over_time, rngs=rngs)
        level = lambda cin, cout, mid=False: Level(cin, cout, wide, config, mid, rngs=rngs)
        steps = list(pairwise((dim, *channels)))
        self.down = nnx.List([level(cin, cout) for cin, cout in steps])
        smaller = lambda dim: Conv(dim, dim, (4, 4), strides=2, padding=[(1, 1), (1, 1)], rngs=rngs)
        self.downsample = nnx.List([smaller(dim) for dim in channels[:-1]])
        self.mid = level(channels[-1], channels[-1], True)
        self.up = nnx.List([level(2 * cout, cin) for cin, cout in reversed(steps)])
        larger: Callable = Upsample
        if config.transposed:
            larger = lambda dim, rngs: ConvTranspose(dim, dim, (4, 4), (2, 2), rngs=rngs)
        self.upsample = nnx.List([larger(steps[i][0], rngs=rngs) for i in range(last, 0, -1)])
        self.outputs = nnx.List(
            [Output(2 * dim, dim, n, config.groups, rngs=rngs) for n in (config.out_channels - 1, 1)]
        )

    def __call__(
        self,
        x: Video,
        t: Num[Array, "b t"],
        tokens: Any = None,
        vector: Float[Array, "b v"] | None = None,
        *,
        token_mask: Any = None,
        images: int = 0,
        remat: str = "none",
    ) -> Video:
        """Predicts for noisy `x` at network times `t` under the condition `vector`; of captions that is their mean, the
        tokens one by one are not looked at. Raises InputError for inputs that it was not built for."""
        self.check(x, vector, images, remat)
        emb = self.time_embedding(sinusoid(t.astype(jnp.float32), self.config.channels[0]).astype(x.dtype))
        if vector is not None:
            emb = jnp.concatenate([emb, jnp.broadcast_to(vector[:, None], (*emb.shape[:2], vector.shape[-1]))], -1)
        angles = find_angles(self.frequencies[...], x.shape[1])
        places = angles, self.time_bias.embedding[...][find_buckets(x.shape[1])].transpose(2, 0, 1)

        def run(level: Level, x: Video) -> Video:
            call = lambda x, emb, places: level(x, emb, places)
            return (call if remat == "none" else jax.checkpoint(call, policy=REMAT[remat]))(x, emb, places)

        first = self.conv_in(x)
        x, skips = self.attn_in(first, places), []
        for level, smaller in zip(self.down, (*self.downsample, None)):
            x = run(level, x)
            skips.append(x)
            x = x if smaller is None else smaller(x)
        x = run(self.mid, x)
        for level, larger in zip(self.up, (*self.upsample, None)):
            x = run(level, jnp.concatenate([x, skips.pop()], -1))
            x = x if larger is None else larger(x)
        x = jnp.concatenate([x, first], -1)
        return jnp.concatenate([output(x, emb) for output in self.outputs], -1)

    def check(self, x: Video, vector: Float[Array, "b v"] | None, images: int, remat: str) -> None:
        """Raises InputError for inputs that the U-Net was not built for."""
        width = None if vector is None else vector.shape[-1]
        if width != self.config.vector_dim:
            raise InputError(f"conditions of {width} features; the U-Net was built with {self.config.vector_dim}")
        if images:
            raise InputError(f"images={images} stills beside each clip: this U-Net takes none, set data.images=0")
        times = 2 ** (len(self.config.channels) - 1)
        if any(size % times for size in x.shape[2:4]):
            raise InputError(
                f"maps of {x.shape[2]}x{x.shape[3]} do not halve down to the U-Net's lowest level; take multiples of "
                f"{times}"
            )
        if remat not in REMAT:
            raise InputError(f"remat={remat!r} is not known; choose one of {', '.join(REMAT)}")
