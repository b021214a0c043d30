"""softmax(q k' / sqrt(d)) v in the forms that CPUs, GPUs and TPUs run fastest, equal up to rounding."""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from vidjax.models import kernels
from vidjax.models.kernels.products import product

CHUNK = 128  # queries at a time
# A layer with more weights, one for each (query, key) pair of each head, doesn't keep them for the backward pass.
# Milliseconds on two AVX-512 cores, all at once and chunked, of 4 x 8 heads of 40, 1024 queries and 2048 keys: forward
# 108 and 131, with backward 342 and 517, in 532 and 105 MiB of temporaries.
KEPT = 2**26


def plain(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """All queries at once. A query that may see nothing gets the mean of all values."""
    out = _weigh(rearrange(q, "b n k d -> b k n d"), *_laid_out(k, v), mask)
    return rearrange(out, "b k n d -> b n k d")


def chunked(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Some queries at a time, their weights computed again in the backward pass: memory linear in the queries."""
    n = q.shape[1]
    pad = -n % CHUNK
    parts = rearrange(jnp.pad(q, ((0, 0), (0, pad), (0, 0), (0, 0))), "b (s n) k d -> s b k n d", n=CHUNK)
    keys, values = _laid_out(k, v)
    weigh = jax.checkpoint(lambda part, seen: _weigh(part, keys, values, seen))
    if mask is None or mask.shape[2] == 1:
        out = jax.lax.map(lambda part: weigh(part, mask), parts)
    else:
        masks = jnp.pad(mask, ((0, 0), (0, 0), (0, pad), (0, 0)), constant_values=True)
        masks = rearrange(masks, "b k (s n) m -> s b k n m", n=CHUNK)
        out = jax.lax.map(lambda part: weigh(*part), (parts, masks))
    return rearrange(out, "s b k n d -> b (s n) k d")[:, :n]


def _laid_out(k: Array, v: Array) -> tuple[Array, Array]:
    """Keys and values as the products take them."""
    return rearrange(k, "b m k d -> b k d m"), rearrange(v, "b m k d -> b k m d")


def _weigh(
    q: Float[Array, "b k n d"], keys: Float[Array, "b k d m"], values: Float[Array, "b k m d"], mask: Array | None
) -> Float[Array, "b k n d"]:
    """The textbook form, the softmax in fp32. The queries are scaled, not the scores, and the result is divided by the
    sum of the weights, not these: fewer passes over what is largest."""
    w = product(q * q.shape[-1] ** -0.5, keys).astype(jnp.float32)
    if mask is not None:
        w = jnp.where(mask, w, -1e30)
    w = jnp.exp(w - jax.lax.stop_gradient(w.max(-1, keepdims=True)))
    return (product(w.astype(values.dtype), values) / w.sum(-1, keepdims=True)).astype(values.dtype)


def cudnn(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Flash attention (Dao et al. 2022) of cuDNN, for masks of keys alone. It knows how many keys there are, not which:
    the masked ones go to the end. An odd number of queries or keys is padded."""
    n, m = q.shape[1], k.shape[1]
    lengths = None if m % 2 == 0 else jnp.full(len(q), m)
    if mask is not None:
        seen = jnp.broadcast_to(mask[:, 0, 0], (len(q), m))
        order = jnp.argsort(~seen, axis=1, stable=True)[:, :, None, None]
        k, v = (jnp.take_along_axis(a, order, 1) for a in (k, v))
        lengths = jnp.maximum(seen.sum(1), 1)
    q, k, v = (jnp.pad(a, ((0, 0), (0, a.shape[1] % 2), (0, 0), (0, 0))) for a in (q, k, v))
    lengths = None if lengths is None else lengths.astype(jnp.int32)
    out = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="cudnn")[:, :n]
    return out if mask is None else _or_mean(out, v[:, :m], mask)


def splash(q: Array, k: Array, v: Array, mask: Array | None = None, interpret: bool = False) -> Array:
    """Flash attention as a TPU kernel, JAX's own "splash", for masks of keys alone. Queries and keys are padded to
    whole blocks; those that are not there belong to another segment than the queries. `interpret`: off TPUs, slowly."""
    from jax.experimental.pallas.ops.tpu import splash_attention as kernel

    (b, n, heads, d), m = q.shape, k.shape[1]
    (block_q, rows), (block_k, columns) = _blocks(n), _blocks(m)
    sizes = kernel.BlockSizes(
        block_q=block_q, block_kv=block_k, block_kv_compute=block_k,
        block_q_dkv=block_q, block_kv_dkv=block_k, block_kv_dkv_compute=block_k, use_fused_bwd_kernel=True,
    )  # fmt: skip
    whole = kernel.MultiHeadMask([kernel.FullMask((rows, columns))] * heads)
    run = kernel.make_splash_mha(whole, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
    pad = lambda a, size: jnp.pad(a.swapaxes(1, 2), ((0, 0), (0, 0), (0, size - a.shape[1]), (0, 0)))
    q, keys, values = pad(q * d**-0.5, rows), pad(k, columns), pad(v, columns)
    segments = None
    if mask is not None or columns > m:
        seen = jnp.ones((b, m), bool) if mask is None else jnp.broadcast_to(mask[:, 0, 0], (b, m))
        there = jnp.pad(seen, ((0, 0), (0, columns - m))).astype(jnp.int32)
        segments = kernel.SegmentIds(jnp.ones((b, rows), jnp.int32), there)
    out = jax.vmap(run)(q, keys, values, segments)[:, :, :n].swapaxes(1, 2)
    return out if mask is None else _or_mean(out, v, mask)


def _blocks(size: int) -> tuple[int, int]:
    """(tokens of a block, tokens of all blocks): 128 to 512 tokens a block, the largest that pads the least."""
    whole = -(-size // 128) * 128
    return next(block for block in (512, 384, 256, 128) if whole % block == 0), whole


def _or_mean(out: Array, v: Array, mask: Array) -> Array:
    """`out`, but the mean of all values where `mask` leaves none."""
    return jnp.where(mask[:, 0, 0].any(-1)[:, None, None, None], out, v.mean(1, keepdims=True).astype(out.dtype))


ATTENTION: dict[str, Callable] = {"plain": plain, "chunked": chunked, "cudnn": cudnn, "splash": splash}


def choose(q: Array, k: Array, mask: Array | None = None) -> str:
    """The fastest entry of `ATTENTION` for these shapes and this dtype on the program's platform."""
    b, n, heads, d = q.shape
    m, choice = k.shape[1], kernels.choice()
    if choice.textbook:
        return "plain"
    of_keys = mask is None or mask.shape[1] == mask.shape[2] == 1
    if choice.by_hand and of_keys and n >= CHUNK:
        half = q.dtype in (jnp.bfloat16, jnp.float16)
        if kernels.platform() == "gpu" and half and d % 8 == 0 and d <= widest(kernels.device_kind()):
            return "cudnn"
        if kernels.platform() == "tpu":
            return "splash"
    return "chunked" if n > CHUNK and b * heads * n * m > KEPT else "plain"


@functools.cache
def widest(kind: str) -> int:
    """Features of a head that cuDNN's flash attention takes on a GPU of this name: none before Ampere, 128 on it, 256
    on Hopper's and Blackwell's data centre chips."""
    if re.search(r"H100|H200|H20\b|H800|GH200|B100|B200|B300", kind):
        return 256
    old = r"\b[KMP]\d+\b|V100|\bT4\b|Quadro|TITAN|GTX|RTX 20"
    return 128 if kind.startswith("NVIDIA") and not re.search(old, kind) else 0


def attend(
    q: Float[Array, "b n k d"],
    k: Float[Array, "b m k d"],
    v: Float[Array, "b m k d"],
    mask: Bool[Array, "#b #k #n m"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "b n k d"]:
    """softmax(q k' / sqrt(d)) v for each head k; the mask is true where a query may look.

    `implementation` is a name in `ATTENTION`, by default what `choose` says; compiled programs tell it as the scope
    "attention_NAME". A query that may see nothing gets the mean of all values.
    """
    name = implementation or choose(q, k, mask)
    with jax.named_scope(f"attention_{name}"):
        return ATTENTION[name](q, k, v, mask)
