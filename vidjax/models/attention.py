"""Attention, the feed-forward layer, and the transformer made of such sublayers, on pixels as tokens `[b, t, n, c]`."""

import functools
from collections.abc import Callable, Iterable
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from vidjax.models.layers import Context, GroupNorm, LayerNorm, Over, apart, linear, sinusoid

Keys = Literal["frame", "first_and_previous", "tokens", "time"]


CHUNK = 128  # queries at a time
# Below this many (query, key) pairs a head, the textbook form is as fast. Milliseconds forward and backward on two
# cores, textbook and chunked, 2 x 8 heads of 40: 256 tokens 10, 21; 512: 64, 79 (cpu time 114, 79); 1024: 450, 208.
LONG = 512 * 512


def plain(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """The textbook form, with the softmax in fp32. A query that may see nothing gets the mean of all values."""
    w = jnp.einsum("bnkd,bmkd->bknm", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    if mask is not None:
        w = jnp.where(mask, w, -1e30)
    return jnp.einsum("bknm,bmkd->bnkd", jax.nn.softmax(w, -1).astype(v.dtype), v)


def chunked(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Some queries at a time, their weights computed again in the backward pass: memory linear in the queries."""
    n = q.shape[1]
    pad = -n % CHUNK
    parts = rearrange(jnp.pad(q, ((0, 0), (0, pad), (0, 0), (0, 0))), "b (s n) k d -> s b n k d", n=CHUNK)
    if mask is None or mask.shape[2] == 1:
        out = jax.lax.map(jax.checkpoint(lambda part: plain(part, k, v, mask)), parts)
    else:
        masks = jnp.pad(mask, ((0, 0), (0, 0), (0, pad), (0, 0)), constant_values=True)
        masks = rearrange(masks, "b k (s n) m -> s b k n m", n=CHUNK)
        out = jax.lax.map(jax.checkpoint(lambda part: plain(part[0], k, v, part[1])), (parts, masks))
    return rearrange(out, "s b n k d -> b (s n) k d")[:, :n]


def cudnn_flash(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Flash attention (Dao et al. 2022) of cuDNN."""
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], q.shape[1], k.shape[1]))
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")


def tpu_flash(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Flash attention as a TPU kernel; it knows no mask."""
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    if mask is not None:
        raise ValueError("tpu_flash takes no mask")
    block_q, block_k = (next(n for n in (512, 256, 128) if a.shape[1] % n == 0) for a in (q, k))
    sizes = flash.BlockSizes(
        block_q=block_q, block_k_major=block_k, block_k=block_k, block_b=1,
        block_q_major_dkv=block_q, block_k_major_dkv=block_k, block_k_dkv=block_k, block_q_dkv=block_q,
        block_k_major_dq=block_k, block_k_dq=block_k, block_q_dq=block_q,
    )  # fmt: skip
    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
    return flash.flash_attention(q, k, v, sm_scale=q.shape[-1] ** -0.5, block_sizes=sizes).swapaxes(1, 2)


PREFERRED: dict[str, str] = {}  # backend -> name in ATTENTION, in place of what `choose` says
ATTENTION: dict[str, Callable] = {"plain": plain, "chunked": chunked, "cudnn": cudnn_flash, "tpu": tpu_flash}


def choose(q: Array, k: Array, mask: Array | None = None, backend: str | None = None) -> str:
    """The fastest entry of `ATTENTION` that takes these shapes and this dtype on this backend."""
    backend = backend or jax.default_backend()
    (n, d), m = (q.shape[1], q.shape[-1]), k.shape[1]
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    fits = d % 8 == 0 and d <= 128 and (mask is None or n % 2 == m % 2 == 0)
    if backend in ("gpu", "cuda") and n >= CHUNK and half and fits and has_flash():
        return "cudnn"
    if backend == "tpu" and mask is None and n % 128 == m % 128 == 0 and (d < 128 or d % 128 == 0):
        return "tpu"
    return "chunked" if n > CHUNK and n * m >= LONG else "plain"


@functools.cache
def has_flash() -> bool:
    """Whether the GPU is an NVIDIA one of compute capability 8.0 (Ampere) or newer."""
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    major = capability.split(".")[0]
    return major.isdigit() and int(major) >= 8


def attend(
    q: Float[Array, "b n k d"],
    k: Float[Array, "b m k d"],
    v: Float[Array, "b m k d"],
    mask: Bool[Array, "#b #k #n m"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "b n k d"]:
    """softmax(q k' / sqrt(d)) v for each head k; the mask is true where a query may look.

    `implementation` is a name in `ATTENTION`, by default what `choose` says; they are equal up to rounding.
    """
    implementation = implementation or PREFERRED.get(jax.default_backend()) or choose(q, k, mask)
    return ATTENTION[implementation](q, k, v, mask)


def sinusoid_interleaved(n: int, dim: int) -> Float[Array, "n {dim}"]:
    """sin, cos in turn (Vaswani et al. 2017): AnimateDiff's frame positions."""
    s = sinusoid(jnp.arange(n, dtype=jnp.float32), dim)
    return rearrange(s, "n (two d) -> n d two", two=2)[..., ::-1].reshape(n, dim)


def first_and_previous(a: Float[Array, "b t n *s"]) -> Float[Array, "b t m *s"]:
    """The tokens of the first and of the previous frame side by side (Tune-A-Video); frame 0 is its own previous."""
    first = jnp.broadcast_to(a[:, :1], a.shape)
    return jnp.concatenate([first, jnp.concatenate([a[:, :1], a[:, :-1]], 1)], 2)


class Attention(nnx.Module):
    """x + attend(norm(x)); `keys` says to what: the own frame, the first and the previous frame, `ctx.tokens`, or all
    frames at the same pixel."""

    def __init__(
        self,
        dim: int,
        heads: int,
        keys: Keys = "frame",
        *,
        head_dim: int | None = None,
        kv_dim: int | None = None,
        norm: Callable | None = None,
        bias: bool = False,
        positions: bool = False,
        relative: Callable | None = None,
        zero: bool = False,
        rngs: nnx.Rngs,
    ):
        inner = heads * (head_dim or dim // heads)
        self.norm = norm or LayerNorm(dim, rngs=rngs)
        self.to_q, self.to_k, self.to_v = (
            linear(width, inner, bias, rngs=rngs) for width in (dim, kv_dim or dim, kv_dim or dim)
        )
        self.to_out = linear(inner, dim, zero=zero, rngs=rngs)
        self.relative = nnx.data(relative)
        self.heads, self.keys, self.positions = heads, keys, positions

    def __call__(self, x: Float[Array, "b t n c"], ctx: Context) -> Float[Array, "b t n c"]:
        if ctx.images and self.keys in ("time", "first_and_previous"):
            return apart(self, x, ctx)
        if self.keys == "tokens":
            h = rearrange(self.norm(x, ctx), "b t n c -> b 1 (t n) c")
            return x + self.mix(h, ctx.tokens[:, None], ctx.token_mask).reshape(x.shape)
        if self.keys == "time":
            x = ctx.place(x, "pixels")
            h = self.norm(x, ctx).swapaxes(1, 2)
            if self.positions:
                h = h + sinusoid_interleaved(*h.shape[2:]).astype(h.dtype)
            return ctx.place(x + self.mix(h, h).swapaxes(1, 2), "frames")
        h = self.norm(x, ctx)
        return x + self.mix(h, h)

    def mix(self, h: Array, source: Array, token_mask: Array | None = None) -> Array:
        """From `[b, s, n, c]` and `[b, s, m, d]`: every n attends to the m of the same s."""
        q, k, v = (
            rearrange(a, "b s n (k d) -> b s n k d", k=self.heads)
            for a in (self.to_q(h), self.to_k(source), self.to_v(source))
        )
        if self.keys == "first_and_previous":
            k, v = first_and_previous(k), first_and_previous(v)
        mask = None if token_mask is None else token_mask[:, None, None]
        q, k, v = (rearrange(a, "b s n k d -> (b s) n k d") for a in (q, k, v))
        out = attend(q, k, v, mask) if self.relative is None else self.relative(q, k, v)
        return self.to_out(out.reshape(*h.shape[:3], -1))


class FeedForward(nnx.Module):
    """x + ff(norm(x)), gated by the exact gelu (Shazeer 2020)."""

    def __init__(self, dim: int, zero: bool = False, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(dim, rngs=rngs)
        self.proj_in = linear(dim, 8 * dim, rngs=rngs)
        self.proj_out = linear(4 * dim, dim, zero=zero, rngs=rngs)

    def __call__(self, x: Float[Array, "*s c"], ctx: Context) -> Float[Array, "*s c"]:
        h, gate = jnp.split(self.proj_in(self.norm(x, ctx)), 2, -1)
        return x + self.proj_out(h * jax.nn.gelu(gate, approximate=False))


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
