"""Layers on videos `[b, t, h, w, c]`, all with the signature `layer(x, ctx) -> x`; an image is a video with t = 1."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vidjax.errors import InputError
from vidjax.models.convolution import Conv
from vidjax.models.initial import constant, uniform_by_fan, zeros
from vidjax.models.kernels.moments import STATISTICS, mean_of_groups, mean_over, moments
from vidjax.models.kernels.placement import to_frames, to_pixels, tpu_has_whole_clips, ways, whole
from vidjax.models.kernels.products import product
from vidjax.models.kernels.sums import add_row, scale_row, spread

Over = Literal["frame", "clip", "pixel"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What every layer may look at: one object, so all layers share one signature.

    `images`: the last so many frames are independent stills, each a clip of its own. `size`: the map size that the next
    upsampling aims at. `frames`: those of a clip, where batch and frames are one axis of the input; else 0.
    """

    emb: Float[Array, "*b e"]
    tokens: Float[Array, "b m d"] | None = None
    token_mask: Bool[Array, "b m"] | None = None
    images: int = dataclasses.field(default=0, metadata={"static": True})
    size: tuple[int, int] | None = dataclasses.field(default=None, metadata={"static": True})
    frames: int = dataclasses.field(default=0, metadata={"static": True})


def apart(layer: Callable, x: Float[Array, "b t *s c"], ctx: Context) -> Float[Array, "b t *s d"]:
    """Applies a layer that mixes frames to the video and to each of the last `ctx.images` frames by itself.

    The same as a block-diagonal mask over frames, for any layer: joint training on videos and stills (Ho et al. 2022).
    """
    k = ctx.images
    if ways("context") > 1:
        raise InputError(f"{k} stills beside each clip cannot be cut over devices: set data.images=0 or mesh.context=1")

    def fold(a):
        return rearrange(a[:, a.shape[1] - k :], "b k ... -> (b k) 1 ...")

    def each(a):
        return None if a is None else repeat(a, "b ... -> (b k) ...", k=k)

    stills = dataclasses.replace(
        ctx, emb=fold(ctx.emb), tokens=each(ctx.tokens), token_mask=each(ctx.token_mask), images=0
    )
    out = rearrange(layer(fold(x), stills), "(b k) 1 ... -> b k ...", k=k)
    if k == x.shape[1]:
        return out
    video = layer(x[:, :-k], dataclasses.replace(ctx, emb=ctx.emb[:, :-k], images=0))
    return jnp.concatenate([video, out], 1)


class Sequential(nnx.Module):
    """Applies named layers in turn, a layer itself. The order is kept apart: nnx sorts attribute names on merge."""

    def __init__(self, **layers: Callable):
        self.order = tuple(layers)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __call__(self, x: Array, ctx: Context) -> Array:
        for name in self.order:
            x = getattr(self, name)(x, ctx)
        return x


# Norms. The statistics are fp32 whatever comes in.


class GroupNorm(nnx.Module):
    """Group normalisation with statistics over a frame, a whole clip, or all frames of one pixel. `scale` and `shift`,
    the same for all pixels of a frame, then make a y of it (1 + scale) y + shift, in the same pass."""

    def __init__(self, dim: int, groups: int = 32, eps: float = 1e-5, over: Over = "frame", *, rngs: nnx.Rngs):
        self.scale, self.bias = nnx.Param(constant(1, dim)), nnx.Param(constant(0, dim))
        self.groups, self.eps, self.over = groups, eps, over

    def __call__(
        self,
        x: Float[Array, "b t *s c"],
        ctx: Context,
        scale: Array | None = None,
        shift: Array | None = None,
        dtype: DTypeLike | None = None,
    ) -> Float[Array, "b t *s c"]:
        """Normalises; the result has the dtype of `x` unless another is named."""
        if scale is not None and (ctx.images or self.over == "pixel"):
            return (self(x, ctx, dtype=dtype) * (1 + scale) + shift).astype(x.dtype if dtype is None else dtype)
        if ctx.images and self.over != "frame":
            return apart(lambda x, ctx: self(x, ctx, dtype=dtype), x, ctx)
        how = dict(groups=self.groups, eps=self.eps, over=self.over, frames=ctx.frames)
        dtype = jnp.dtype(x.dtype if dtype is None else dtype)
        return normalise(x, self.scale[...], self.bias[...], scale, shift, **how, dtype=dtype)


@functools.partial(jax.jit, static_argnames=("groups", "eps", "over", "frames", "dtype"))
def normalise(
    x: Float[Array, "b t *s c"],
    gain: Float[Array, " c"],
    bias: Float[Array, " c"],
    scale: Array | None,
    shift: Array | None,
    groups: int,
    eps: float,
    over: Over,
    frames: int,
    dtype: jnp.dtype,
) -> Float[Array, "b t *s c"]:
    """Computes what `GroupNorm` does, as a jitted function: traced, differentiated and lowered once for all norms of
    the same shapes, which XLA inlines. Without it tracing a U-Net's step takes half as long again."""
    within = tuple(range(1 if frames else 2, x.ndim - 1))
    axes = {"frame": within, "clip": within if frames else (1, *within), "pixel": (1,)}[over]
    pool = lambda means: mean_of_clips(mean_of_groups(means, groups), frames if over == "clip" else 0)
    wide = x.astype(jnp.float32)
    # By channel first: half the time on a CPU.
    mean, variance = moments(wide, lambda y: mean_over(y, axes), pool, x.dtype)
    near = jax.lax.stop_gradient(mean)  # whatever it is, what follows is the same, and the gradient has a sum less
    slope = scale_row(jax.lax.rsqrt(variance + eps), gain)
    start = add_row(-(mean - near) * slope, bias)
    if scale is not None:
        slope, start, axes = slope * (1 + scale), start * (1 + scale) + shift, within
    wherever = lambda numbers: spread(numbers, x.shape, axes)
    return ((wide - near) * wherever(slope) + wherever(start)).astype(dtype)


def mean_of_clips(a: Array, frames: int) -> Array:
    """Returns for each frame the mean over its clip, of so many of them in turn; with 0 each is a clip of its own."""
    if not frames:
        return a
    clips = a.reshape(-1, frames, *a.shape[1:])
    return jnp.broadcast_to(clips.mean(1, keepdims=True), clips.shape).reshape(a.shape)


class LayerNorm(nnx.Module):
    """Normalisation over features (eps 1e-5, as in Stable Diffusion)."""

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True, *, rngs: nnx.Rngs):
        self.scale, self.eps = nnx.Param(constant(1, dim)), eps
        self.bias = nnx.data(nnx.Param(constant(0, dim)) if bias else None)

    def __call__(self, x: Float[Array, "*s c"], ctx: Context | None = None) -> Float[Array, "*s c"]:
        mean, variance = moments(x, lambda y: y.mean(-1, keepdims=True))
        y = (x.astype(jnp.float32) - mean) * jax.lax.rsqrt(variance + self.eps)
        y = scale_row(y.astype(x.dtype), self.scale[...])
        return y if self.bias is None else add_row(y, self.bias[...])


def silu_norm(norm: Callable, x: Float[Array, "b t *s c"], ctx: Context, *film: Array) -> Float[Array, "b t *s c"]:
    """SiLU, in fp32, of a norm that takes scale and shift as `film`. For the backward pass only its input and
    statistics are kept, the rest is computed again: cheaper than to read it from memory, of which a chain of norm, SiLU
    and product needs a third less.
    """
    kept = jax.checkpoint_policies.save_only_these_names(STATISTICS)
    run = lambda x, *film: jax.nn.silu(norm(x, ctx, *film, dtype=jnp.float32)).astype(x.dtype)
    return jax.checkpoint(run, policy=kept)(x, *film)


# Embeddings.


def look_up(table: nnx.Embed, ids: Int[Array, " *s"]) -> Float[Array, "*s d"]:
    """Rows of the table, in the dtype of its parameters now: called, nnx.Embed gives the one it was built with."""
    return jnp.take(table.embedding[...], ids, axis=0)


class Linear(nnx.Linear):
    """A linear layer; the gradient of its bias is that of `sums.add_row`."""

    def __call__(self, inputs: Float[Array, "*s c"]) -> Float[Array, "*s d"]:
        numbers = (((inputs.ndim - 1,), (0,)), ((), ()))
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = promote_dtype((inputs, whole(self.kernel[...]), bias), dtype=self.dtype)
        how = dict(precision=self.precision, preferred_element_type=self.preferred_element_type)
        y = self.dot_general(x, kernel, numbers, **how)
        return y if bias is None else add_row(y, bias)


def linear(cin: int, cout: int, bias: bool = True, zero: bool = False, *, rngs: nnx.Rngs) -> Linear:
    """Makes a linear layer whose products are those of `kernels.products`; `zero` starts its kernel at zero."""
    init = zeros if zero else uniform_by_fan()
    return Linear(cin, cout, use_bias=bias, kernel_init=init, bias_init=zeros, dot_general=_dot_general, rngs=rngs)


def _dot_general(x: Array, kernel: Array, numbers: Any, precision: Any = None, **more: Any) -> Array:
    """`product` where that is what nnx.Linear asks for: the last axis with the first, in the inputs' own precision."""
    usual = numbers == (((x.ndim - 1,), (0,)), ((), ())) and kernel.ndim == 2
    if usual and precision is None and not any(more.values()):
        return product(x, kernel)
    return jax.lax.dot_general(x, kernel, numbers, precision=precision, **more)


def sinusoid(t: Float[Array, " *s"], dim: int, period: float = 10_000.0) -> Float[Array, "*s {dim}"]:
    """[cos, sin] halves with periods from 2 pi to 2 pi `period`: of timesteps, coordinates, frame indices."""
    angles = t[..., None] * jnp.exp(-jnp.log(period) * jnp.arange(dim // 2) / (dim // 2))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class MLP(nnx.Module):
    """Two linear layers with an activation between, by default SiLU."""

    def __init__(
        self,
        cin: int,
        hidden: int,
        cout: int,
        zero: bool = False,
        act: Callable[[Array], Array] = jax.nn.silu,
        *,
        rngs: nnx.Rngs,
    ):
        self.linear_1 = linear(cin, hidden, rngs=rngs)
        self.linear_2 = linear(hidden, cout, zero=zero, rngs=rngs)
        self.act = act

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s d"]:
        return self.linear_2(self.act(self.linear_1(x)))


class Positions(nnx.Module):
    """Adds an MLP of sinusoids of the (t, h, w) coordinates, for any size; zero at the start."""

    features = 64  # of each coordinate

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.mlp = MLP(3 * self.features, dim, dim, zero=True, rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w c"], ctx: Context) -> Float[Array, "b t h w c"]:
        if ctx.images:
            return apart(self, x, ctx)
        grid = jnp.stack(jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in x.shape[1:4]), indexing="ij"), -1)
        features = sinusoid(grid, self.features, period=1_000.0).reshape(*x.shape[1:4], -1)
        return x + self.mlp(features.astype(x.dtype))


# Convolutional layers.


class ResBlock(nnx.Module):
    """GroupNorm-SiLU-convolution twice, the time embedding added (or as scale and shift) between.

    With a kernel of three numbers it convolves over time as well, with two per frame. Stable Diffusion's has
    `norm_over="frame"`; starts as its shortcut. On a TPU batch and frames are one axis throughout, as its convolutions
    have them: to part the two between them would be a copy each time.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        emb_dim: int,
        kernel: tuple[int, ...] = (3, 3),
        norm_over: Over = "frame",
        scale_shift: bool = False,
        groups: int = 32,
        eps: float = 1e-5,
        *,
        rngs: nnx.Rngs,
    ):
        self.norm1 = GroupNorm(cin, groups, eps, norm_over, rngs=rngs)
        self.conv1 = Conv(cin, cout, kernel, rngs=rngs)
        self.time_emb_proj = linear(emb_dim, (1 + scale_shift) * cout, rngs=rngs)
        self.norm2 = GroupNorm(cout, groups, eps, norm_over, rngs=rngs)
        self.conv2 = Conv(cout, cout, kernel, zero=True, rngs=rngs)
        self.conv_shortcut = nnx.data(linear(cin, cout, rngs=rngs) if cin != cout else None)
        self.scale_shift, self.over_time = scale_shift, len(kernel) == 3

    def __call__(self, x: Float[Array, "b t h w c"], ctx: Context) -> Float[Array, "b t h w d"]:
        if not self.over_time:
            if not tpu_has_whole_clips() or ctx.images or self.norm1.over == "pixel":
                return self.run(x, ctx)
            fold = lambda a: a.reshape(-1, *a.shape[2:])
            folded = Context(fold(ctx.emb), frames=x.shape[1])
            return self.run(fold(x), folded).reshape(*x.shape[:-1], -1)
        if ctx.images:
            return apart(self, x, ctx)
        return to_frames(self.run(to_pixels(x), ctx))

    def run(self, x: Array, ctx: Context) -> Array:
        """Applies the block where all frames that it convolves over are at hand, or to frames in the batch."""
        emb = self.time_emb_proj(jax.nn.silu(ctx.emb))[..., None, None, :]
        h = self.conv1(silu_norm(self.norm1, x, ctx))
        h, film = (h, jnp.split(emb, 2, -1)) if self.scale_shift else (h + emb, ())
        h = self.conv2(silu_norm(self.norm2, h, ctx, *film))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nnx.Module):
    """A convolution of stride 2; an odd size n becomes (n + 1) / 2. `border`: rows of zeros above and below, with two
    there is one row more, which begins one row higher."""

    def __init__(self, dim: int, border: int = 1, *, rngs: nnx.Rngs):
        self.conv = Conv(dim, dim, strides=2, padding=[(border, border), (1, 1)], rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w c"], ctx: Context) -> Float[Array, "b t i j c"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Nearest neighbours to `ctx.size` (twice the size, or one less), then a convolution. `border`: that of the
    `Downsample` that it undoes."""

    def __init__(self, dim: int, border: int = 1, *, rngs: nnx.Rngs):
        self.conv = Conv(dim, dim, rngs=rngs)
        self.above = border - 1

    def __call__(self, x: Float[Array, "b t h w c"], ctx: Context) -> Float[Array, "b t i j c"]:
        height, width = ctx.size or (2 * (x.shape[2] - self.above), 2 * x.shape[3])
        x = repeat(x, "b t h w c -> b t (h p) (w q) c", p=2, q=2)
        return self.conv(x[:, :, self.above : self.above + height, :width])
