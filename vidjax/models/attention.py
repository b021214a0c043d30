"""Attention, the feed-forward layer, and the transformer made of such sublayers, on pixels as tokens `[b, t, n, c]`."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from vidjax.errors import InputError
from vidjax.models.kernels.attention import attend, tokens_last
from vidjax.models.kernels.placement import local, to_frames, to_pixels, ways
from vidjax.models.kernels.products import gelu
from vidjax.models.layers import Context, GroupNorm, LayerNorm, Over, apart, linear, sinusoid


def sinusoid_interleaved(n: int, dim: int) -> Float[Array, "n {dim}"]:
    """sin, cos in turn (Vaswani et al. 2017): AnimateDiff's frame positions."""
    s = sinusoid(jnp.arange(n, dtype=jnp.float32), dim)
    return rearrange(s, "n (two d) -> n d two", two=2)[..., ::-1].reshape(n, dim)


FrameKeys = tuple[np.ndarray, np.ndarray]  # [t, m]: which frames each frame looks at, and which of these are there


def first(t: int) -> FrameKeys:
    """The first frame (Text2Video-Zero, Khachatryan et al. 2023, eq. 8)."""
    return np.zeros((t, 1), int), np.ones((t, 1), bool)


def first_and_previous(t: int) -> FrameKeys:
    """The first and the previous frame (Tune-A-Video, Wu et al. 2023, eq. 4); frame 0 is its own previous."""
    return np.stack([np.zeros(t, int), np.maximum(np.arange(t) - 1, 0)], 1), np.ones((t, 2), bool)


def previous(t: int, k: int = 1) -> FrameKeys:
    """The k frames before, as far as there are; frame 0 is its own previous."""
    frames = np.arange(t)[:, None] - np.arange(1, k + 1)
    there = frames >= 0
    there[0, 0] = True
    return np.maximum(frames, 0), there


def window(t: int, k: int = 1) -> FrameKeys:
    """The own frame and k on each side, as far as there are."""
    frames = np.arange(t)[:, None] + np.arange(-k, k + 1)
    return np.clip(frames, 0, t - 1), (frames >= 0) & (frames < t)


def causal(t: int) -> FrameKeys:
    """The own frame and all before."""
    frames = np.tile(np.arange(t), (t, 1))
    return frames, np.tril(np.ones((t, t), bool))


def every(t: int) -> FrameKeys:
    """All frames: full attention over space and time."""
    return np.tile(np.arange(t), (t, 1)), np.ones((t, t), bool)


KEY_FRAMES: dict[str, Callable[..., FrameKeys]] = {
    "first": first,
    "first_and_previous": first_and_previous,
    "previous": previous,
    "window": window,
    "causal": causal,
    "all": every,
}
COUNTED = ("previous", "window")  # take a number, as in "window:2"; it is 1 if left out
KEYS = ("frame", "tokens", "time", *KEY_FRAMES)


def key_frames(keys: str | Callable[[int], FrameKeys]) -> Callable[[int], FrameKeys] | None:
    """Returns the entry of `KEY_FRAMES` that `keys`, a name or name:number, stands for, a function as it is, and None
    for the other names in `KEYS`. Raises InputError."""
    if callable(keys):
        return keys
    name, colon, number = keys.partition(":")
    if name not in KEYS:
        raise InputError(f"attention's keys {keys!r} are not known; choose one of {', '.join(KEYS)}")
    if not colon:
        return KEY_FRAMES.get(name)
    if name not in COUNTED or not number.isdecimal() or int(number) < 1:
        raise InputError(
            f"attention's keys {keys!r} are not known; a number, 1 or more, goes with {' and '.join(COUNTED)}"
        )
    return functools.partial(KEY_FRAMES[name], k=int(number))


def gather_frames(a: Float[Array, "b t n c"], frames: np.ndarray, last: bool = False) -> Float[Array, "b t _ c"]:
    """For each frame the tokens of its m key frames [t, m] side by side; `last`: as the last axis, where XLA keeps it.

    Made of slices: their gradient is summed in a fixed order, which that of a gather is not on a GPU.
    """
    if last:
        a = a.swapaxes(2, 3)

    def take(column):
        if (column == column[0]).all():
            return jnp.broadcast_to(a[:, column[0] : column[0] + 1], a.shape)
        runs = np.split(column, np.flatnonzero(np.diff(column) != 1) + 1)
        return jnp.concatenate([a[:, run[0] : run[-1] + 1] for run in runs], 1)

    gathered = jnp.concatenate([take(column) for column in frames.T], 3 if last else 2)
    return gathered.swapaxes(2, 3) if last else gathered


class Attention(nnx.Module):
    """x + attend(norm(x)); `keys` says to what.

    "frame": the own frame; "tokens": `ctx.tokens`; "time": all frames at the same pixel; a name in `KEY_FRAMES`, with
    a number after a colon where it takes one, or a function like those there: these frames. Its cost is linear in the
    frames, but for "causal" and "all". Of the tokens the last `picture_tokens` are a picture's: they have keys and
    values of their own and are attended to apart, what both give is added (Ye et al. 2023, IP-Adapter). Raises
    InputError for other keys.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        keys: str | Callable[[int], FrameKeys] = "frame",
        *,
        head_dim: int | None = None,
        kv_dim: int | None = None,
        norm: Callable | None = None,
        bias: bool = False,
        positions: bool = False,
        relative: Callable | None = None,
        picture_tokens: int = 0,
        zero: bool = False,
        rngs: nnx.Rngs,
    ):
        inner = heads * (head_dim or dim // heads)
        self.norm = norm or LayerNorm(dim, rngs=rngs)
        self.to_q, self.to_k, self.to_v = (
            linear(width, inner, bias, rngs=rngs) for width in (dim, kv_dim or dim, kv_dim or dim)
        )
        self.to_out = linear(inner, dim, zero=zero, rngs=rngs)
        if picture_tokens:
            self.to_k_ip, self.to_v_ip = (linear(kv_dim or dim, inner, bias, rngs=rngs) for _ in "kv")
        self.relative = nnx.data(relative)
        self.heads, self.keys, self.positions, self.picture_tokens = heads, keys, positions, picture_tokens
        key_frames(keys)  # raises

    def __call__(self, x: Float[Array, "b t n c"], ctx: Context) -> Float[Array, "b t n c"]:
        if ctx.images and (self.keys == "time" or key_frames(self.keys)):
            return apart(self, x, ctx)
        if self.keys == "tokens":
            h = rearrange(self.norm(x, ctx), "b t n c -> b 1 (t n) c")
            return x + self.mix(h, ctx.tokens[:, None], ctx.token_mask).reshape(x.shape)
        if self.keys == "time":
            x = to_pixels(x)
            h = self.norm(x, ctx).swapaxes(1, 2)
            if self.positions:
                h = h + sinusoid_interleaved(*h.shape[2:]).astype(h.dtype)
            return to_frames(x + self.mix(h, h).swapaxes(1, 2))
        h = self.norm(x, ctx)
        if self.keys == "all":  # as one long frame: its keys need not be laid out once for every frame
            h = rearrange(h, "b t n c -> b 1 (t n) c")
        return x + self.mix(h, h).reshape(x.shape)

    def mix(self, h: Array, source: Array, token_mask: Array | None = None) -> Array:
        """From `[b, s, n, c]` and `[b, s, m, d]`: every n attends to the m of the same s."""
        q, texts = self.to_q(h), source.shape[2] - self.picture_tokens
        if not self.picture_tokens:
            return self.to_out(self.look(q, self.to_k(source), self.to_v(source), token_mask))
        source, picture = source[:, :, :texts], source[:, :, texts:]
        token_mask = None if token_mask is None else token_mask[:, :texts]
        own = self.look(q, self.to_k(source), self.to_v(source), token_mask)
        return self.to_out(own + self.look(q, self.to_k_ip(picture), self.to_v_ip(picture)))

    def look(self, q: Array, k: Array, v: Array, token_mask: Array | None = None) -> Array:
        """Attends from queries `[b, s, n, c]` to keys and values `[b, s, m, c]`."""
        head_dim, m = q.shape[-1] // self.heads, k.shape[2]
        mask = None if token_mask is None else token_mask[:, None, None, None]
        if look := key_frames(self.keys):
            frames, there = look(q.shape[1])
            k, v = (gather_frames(a, frames, tokens_last(head_dim)) for a in (k, v))
            if not there.all():
                mask = jnp.repeat(there, m, 1)[None, :, None, None]
                mask = jnp.broadcast_to(mask, (q.shape[0], *mask.shape[1:]))
        graphdef, relative = (None, None) if self.relative is None else nnx.split(self.relative)
        own = functools.partial(_look_own, head_dim=head_dim, graphdef=graphdef)
        # Each frame (over time: pixel) by itself; with tokens, which all look at, all frames are one. Heads are whole.
        heads = "heads" if self.heads % ways("heads") == 0 else None
        cut = of_keys = ("batch", "context", None, heads)
        of_mask = cut[:2]
        if self.keys == "tokens":
            cut, of_keys, of_mask = ("batch", None, "context", heads), ("batch", None, None, heads), ("batch",)
        parts = (q, cut), (k, of_keys), (v, of_keys), (mask, of_mask), (relative, ())
        return local(own, *parts, out=cut, every_axis=True)


def _look_own(q: Array, k: Array, v: Array, mask: Array | None, relative: Any, head_dim: int, graphdef: Any) -> Array:
    """`Attention.look` of what one device has; with positions relative to one another by `graphdef` and `relative`."""
    if graphdef is not None:
        return nnx.merge(graphdef, relative)(q, k, v)
    a, b, c = (rearrange(a, "b s n c -> (b s) n c") for a in (q, k, v))
    seen = None if mask is None else rearrange(mask, "b s ... -> (b s) ...")
    return attend(a, b, c, head_dim, seen).reshape(q.shape)


class FeedForward(nnx.Module):
    """x + ff(norm(x)), gated by the exact gelu (Shazeer 2020). `plain`: neither norm nor gate."""

    def __init__(self, dim: int, zero: bool = False, plain: bool = False, *, rngs: nnx.Rngs):
        self.norm = nnx.data(None if plain else LayerNorm(dim, rngs=rngs))
        self.proj_in = linear(dim, (4 if plain else 8) * dim, rngs=rngs)
        self.proj_out = linear(4 * dim, dim, zero=zero, rngs=rngs)

    def __call__(self, x: Float[Array, "*s c"], ctx: Context) -> Float[Array, "*s c"]:
        if self.norm is None:
            return x + self.proj_out(gelu(self.proj_in(x)))
        h, gate = jnp.split(self.proj_in(self.norm(x, ctx)), 2, -1)
        return x + self.proj_out(h * gelu(gate))


class Transformer(nnx.Module):
    """GroupNorm, linear in, blocks on pixels as tokens, linear out, residual."""

    def __init__(
        self,
        dim: int,
        blocks: Iterable[Callable],
        inner: int | None = None,
        norm_over: Over = "frame",
        groups: int = 32,
        zero: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self.norm = GroupNorm(dim, groups, eps=1e-6, over=norm_over, rngs=rngs)
        self.proj_in = linear(dim, inner or dim, rngs=rngs)
        self.blocks = nnx.List(blocks)
        self.proj_out = linear(inner or dim, dim, zero=zero, rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w c"], ctx: Context) -> Float[Array, "b t h w c"]:
        h = rearrange(self.proj_in(self.norm(x, ctx)), "b t h w c -> b t (h w) c")
        for block in self.blocks:
            h = block(h, ctx)
        return x + self.proj_out(h).reshape(x.shape)


class OnTokens(nnx.Module):
    """Runs a token layer on a video, with no projections (the attention of DDPM, VDM and LVDM)."""

    def __init__(self, layer: Callable):
        self.layer = layer

    def __call__(self, x: Float[Array, "b t h w c"], ctx: Context) -> Float[Array, "b t h w c"]:
        return self.layer(rearrange(x, "b t h w c -> b t (h w) c"), ctx).reshape(x.shape)
