"""Layers over time: relative positions for attention, convolutions over frames, frame positions, learned blends."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from vidjax.models import kernels
from vidjax.models.convolution import Conv
from vidjax.models.kernels.attention import attend
from vidjax.models.kernels.placement import to_frames, to_pixels
from vidjax.models.kernels.products import WIDTH
from vidjax.models.kernels.sums import repeat
from vidjax.models.layers import MLP, Context, GroupNorm, apart, silu_norm, sinusoid
from vidjax.runtime.platforms import platform

FEW_FRAMES = 8  # of which a TPU attends to each pair by itself
HALF_ROW = WIDTH // 2  # numbers; 2,048 x 16 frames, 8 heads: 64 each takes a v5e 1.82 M cycles by schedule, 48 2.16 M


class RelativeAttention(nnx.Module):
    """Attention with learned relative keys and values (Shaw et al. 2018), distances clipped to `reach`.

    `transposed` repeats a slip of the LVDM code, needed only for its released unconditional checkpoints: the key term
    is added as [s, t] and scaled by d^-1/4.
    """

    def __init__(self, head_dim: int, reach: int, transposed: bool = False, *, rngs: nnx.Rngs):
        init = nnx.initializers.glorot_uniform()
        self.k = nnx.Param(init(rngs.params(), (2 * reach + 1, head_dim)))
        self.v = nnx.Param(init(rngs.params(), (2 * reach + 1, head_dim)))
        self.reach, self.transposed = reach, transposed

    def __call__(
        self, q: Float[Array, "b n t c"], k: Float[Array, "b n t c"], v: Float[Array, "b n t c"]
    ) -> Float[Array, "b n t c"]:
        tpu = platform() == "tpu" and not kernels.choice().textbook
        if tpu and q.shape[2] <= FEW_FRAMES and not self.transposed:
            return self._by_pairs(*(a.swapaxes(1, 2) for a in (q, k, v))).swapaxes(1, 2)
        heads = (rearrange(a, "b n t (k d) -> (b n) t k d", d=self.k.shape[-1]) for a in (q, k, v))
        return (self._by_features if tpu else self._by_sequences)(*heads).reshape(q.shape)

    def _by_sequences(
        self, q: Float[Array, "b t k d"], k: Float[Array, "b t k d"], v: Float[Array, "b t k d"]
    ) -> Float[Array, "b t k d"]:
        """Equations 3 and 4 of Shaw et al., each pixel's frames as a sequence."""
        w = jnp.einsum("btkd,bskd->bkts", q, k) * q.shape[-1] ** -0.5 + self._of_keys(q)
        w = jax.nn.softmax(w.astype(jnp.float32), -1).astype(v.dtype)
        return jnp.einsum("bkts,bskd->btkd", w, v) + self._of_values(w)

    def _by_pairs(
        self, q: Float[Array, "b t n c"], k: Float[Array, "b t n c"], v: Float[Array, "b t n c"]
    ) -> Float[Array, "b t n c"]:
        """Equations 3 and 4 of Shaw et al. as they are written, each pair of frames by itself, pixels along the rows of
        a TPU: no axis moves, and a head's features are summed by a product with ones."""
        t, d, heads = q.shape[1], self.k.shape[-1], q.shape[-1] // self.k.shape[-1]
        rel_k, rel_v = (jnp.tile(a[...][self._distances(t)], heads)[:, :, None] for a in (self.k, self.v))  # [t s 1 c]
        ones = jnp.repeat(jnp.eye(heads, dtype=q.dtype), d, 0)  # [c heads]
        q, of = q * d**-0.5, lambda a, rel, s: repeat(a[:, s : s + 1], t, 1) + rel[:, s]
        e = jnp.stack([q * of(k, rel_k, s) @ ones for s in range(t)])  # [s b t n heads]
        w = jax.nn.softmax(e.astype(jnp.float32), 0).astype(v.dtype)
        return sum(w[s] @ ones.T * of(v, rel_v, s) for s in range(t))

    def _distances(self, t: int) -> Int[Array, "t t"]:
        """The row of the tables for the key of frame s and the query of frame t."""
        steps = jnp.arange(t)
        return jnp.clip(steps[None] - steps[:, None], -self.reach, self.reach) + self.reach

    def _by_features(
        self, q: Float[Array, "b t k d"], k: Float[Array, "b t k d"], v: Float[Array, "b t k d"]
    ) -> Float[Array, "b t k d"]:
        """As attention without positions, whose heads have one more feature for each frame: of a query what the
        relative keys add, of the key and the value of frame s one at s, else zero. What so comes out last are the
        weights, for the relative values. It has no forward mode where `attend` takes a kernel, as other attention.
        Level 1 of `vdm:ucf101` takes a v5e 14.8 M cycles so, 25.1 M with tables of weights."""
        b, t, heads, d = q.shape
        width = -(-(d + t) // HALF_ROW) * HALF_ROW
        widen = lambda a, more: jnp.concatenate([a, more, jnp.zeros((b, t, heads, width - d - t), a.dtype)], -1)
        frames = jnp.broadcast_to(jnp.eye(t, dtype=q.dtype)[:, None], (b, t, heads, t))
        q = widen(q, self._of_keys(q).swapaxes(1, 2) * d**0.5) * (width / d) ** 0.5  # `attend` divides by its root
        wide = (rearrange(a, "b t k d -> b t (k d)") for a in (q, widen(k, frames), widen(v, frames)))
        out = attend(*wide, width).reshape(q.shape)
        return out[..., :d] + self._of_values(out[..., d : d + t].swapaxes(1, 2))

    def _of_keys(self, q: Float[Array, "b t k d"]) -> Float[Array, "b k t s"]:
        """What the relative keys add to the scores of frames s."""
        d, rel_k = q.shape[-1], self.k[...][self._distances(q.shape[1])]
        if self.transposed:
            return jnp.einsum("bskd,std->bkts", q, rel_k) * d**-0.25
        return jnp.einsum("btkd,tsd->bkts", q, rel_k) * d**-0.5

    def _of_values(self, w: Float[Array, "b k t s"]) -> Float[Array, "b t k d"]:
        """The relative values of frames s, weighed."""
        return jnp.einsum("bkts,tsd->btkd", w, self.v[...][self._distances(w.shape[-1])])


class TemporalConvs(nnx.Module):
    """Four times GroupNorm over the clip, SiLU, convolution over three frames; residual, starts as the identity
    (ModelScope)."""

    def __init__(self, dim: int, groups: int = 32, *, rngs: nnx.Rngs):
        for i in "1234":
            setattr(self, "norm" + i, GroupNorm(dim, groups, over="clip", rngs=rngs))
            setattr(self, "conv" + i, Conv(dim, dim, (3, 1, 1), zero=i == "4", rngs=rngs))

    def __call__(self, x: Float[Array, "b t h w c"], ctx: Context) -> Float[Array, "b t h w c"]:
        if ctx.images:
            return apart(self, x, ctx)
        h = to_pixels(x)
        for i in "1234":
            h = getattr(self, "conv" + i)(silu_norm(getattr(self, "norm" + i), h, ctx))
        return x + to_frames(h)


class FramePositions(nnx.Module):
    """Adds an MLP of the frame index (Stable Video Diffusion)."""

    def __init__(self, dim: int, zero: bool = False, *, rngs: nnx.Rngs):
        self.mlp = MLP(dim, 4 * dim, dim, zero, rngs=rngs)

    def __call__(self, x: Float[Array, "b t n c"], ctx: Context) -> Float[Array, "b t n c"]:
        if ctx.images:
            return apart(self, x, ctx)
        t, c = x.shape[1], x.shape[-1]
        return x + self.mlp(sinusoid(jnp.arange(t, dtype=jnp.float32), c).astype(x.dtype))[:, None]


class Blend(nnx.Module):
    """`a x + (1 - a) layer(x)`, a = sigmoid(mix_factor): a spatial and a temporal branch (Stable Video Diffusion).

    `switched`: sigmoid(mix_factor) is the temporal branch's share instead, as in that model's decoder.
    """

    def __init__(self, layer: Callable, mix: float = 0.5, switched: bool = False):
        self.layer, self.mix_factor, self.switched = layer, nnx.Param(jnp.array([mix])), switched

    def __call__(self, x: Float[Array, "b t *s c"], ctx: Context) -> Float[Array, "b t *s c"]:
        mix = self.mix_factor[...]
        a = jax.nn.sigmoid(-mix if self.switched else mix).astype(x.dtype)
        return a * x + (1 - a) * self.layer(x, ctx)
