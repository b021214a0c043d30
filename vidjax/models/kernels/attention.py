"""softmax(q k' / sqrt(d)) v in the forms that CPUs, GPUs and TPUs run fastest, equal up to rounding."""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from vidjax.models import kernels
from vidjax.models.kernels import short_attention
from vidjax.models.kernels.products import WIDTH, product
from vidjax.models.kernels.sums import largest
from vidjax.runtime.platforms import device_kind, platform

CHUNK = 128  # queries at a time
FLASH = "flash"  # what a TPU's kernel keeps for its backward pass, by this name in `jax.checkpoint`
CUDNN = "dot_product_attention_fwd_wrapper"  # what JAX's call of cuDNN is named, whose results are kept for the same
SIDE_BY_SIDE = 512  # tokens of short sequences in one
# A layer with more weights, one for each (query, key) pair of each head, doesn't keep them for the backward pass.
# Milliseconds on two AVX-512 cores, all at once and chunked, of 4 x 8 heads of 40, 1024 queries and 2048 keys: forward
# 108 and 131, with backward 342 and 517, in 532 and 105 MiB of temporaries.
KEPT = 2**26


def attend_at_once(q: Array, k: Array, v: Array, head_dim: int, mask: Array | None = None) -> Array:
    """All queries at once. A query that may see nothing gets the mean of all values."""
    out = _weigh(rearrange(q, "b n (k d) -> b k n d", d=head_dim), *_laid_out(k, v, head_dim), mask)
    return rearrange(out, "b k n d -> b n (k d)")


def chunked(q: Array, k: Array, v: Array, head_dim: int, mask: Array | None = None) -> Array:
    """Some queries at a time, their weights computed again in the backward pass: memory linear in the queries."""
    n = q.shape[1]
    pad = -n % CHUNK
    q = jnp.pad(q, ((0, 0), (0, pad), (0, 0)))
    parts = rearrange(q, "b (s n) (k d) -> s b k n d", n=CHUNK, d=head_dim)
    keys, values = _laid_out(k, v, head_dim)
    weigh = jax.checkpoint(lambda part, seen: _weigh(part, keys, values, seen))
    if mask is None or mask.shape[2] == 1:
        out = jax.lax.map(lambda part: weigh(part, mask), parts)
    else:
        masks = jnp.pad(mask, ((0, 0), (0, 0), (0, pad), (0, 0)), constant_values=True)
        masks = rearrange(masks, "b k (s n) m -> s b k n m", n=CHUNK)
        out = jax.lax.map(lambda part: weigh(*part), (parts, masks))
    return rearrange(out, "s b k n d -> b (s n) (k d)")[:, :n]


def _laid_out(k: Array, v: Array, head_dim: int) -> tuple[Array, Array]:
    """Keys and values as the products take them."""
    return rearrange(k, "b m (k d) -> b k d m", d=head_dim), rearrange(v, "b m (k d) -> b k m d", d=head_dim)


def _weigh(
    q: Float[Array, "b k n d"], keys: Float[Array, "b k d m"], values: Float[Array, "b k m d"], mask: Array | None
) -> Float[Array, "b k n d"]:
    """The textbook form, the softmax in fp32. The queries are scaled, not the scores, and the result is divided by the
    sum of the weights, not these: fewer passes over what is largest."""
    w = product(q * q.shape[-1] ** -0.5, keys).astype(jnp.float32)
    if mask is not None:
        w = jnp.where(mask, w, -1e30)
    w = jnp.exp(w - largest(jax.lax.stop_gradient(w)))
    return (product(w.astype(values.dtype), values) / w.sum(-1, keepdims=True)).astype(values.dtype)


def cudnn(q: Array, k: Array, v: Array, head_dim: int, mask: Array | None = None) -> Array:
    """Flash attention (Dao et al. 2022) of cuDNN, for masks of keys alone. It knows how many keys there are, not which:
    the masked ones go to the end. An odd number of queries or keys is padded."""
    n, m = q.shape[1], k.shape[1]
    lengths, values = None if m % 2 == 0 else jnp.full(len(q), m), v
    if mask is not None:
        seen = jnp.broadcast_to(mask[:, 0, 0], (len(q), m))
        order = jnp.argsort(~seen, axis=1, stable=True)[:, :, None]
        k, v = (jnp.take_along_axis(a, order, 1) for a in (k, v))
        lengths = jnp.maximum(seen.sum(1), 1)
    q, k, v = (jnp.pad(a, ((0, 0), (0, a.shape[1] % 2), (0, 0))) for a in (q, k, v))
    q, k, v = (rearrange(a, "b n (k d) -> b n k d", d=head_dim) for a in (q, k, v))
    lengths = None if lengths is None else lengths.astype(jnp.int32)
    out = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="cudnn")
    return _or_mean(rearrange(out, "b n k d -> b n (k d)")[:, :n], values, mask)


def splash(q: Array, k: Array, v: Array, head_dim: int, mask: Array | None = None, interpret: bool = False) -> Array:
    """Flash attention as a TPU kernel, JAX's own "splash", for masks of keys alone. `interpret`: off TPUs, slowly.

    Queries and keys are padded to whole blocks, and short sequences stand side by side in one; what must not be seen
    belongs to another segment than the query. The backward kernel writes a gradient of the queries for each block of
    keys, to be summed: so these are large. Heads that do not fill rows of `WIDTH` numbers are
    handed over with the tokens along the rows: features are made the second axis before they are split into heads,
    after which that is free.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as kernel

    (b, n, features), m = q.shape, k.shape[1]
    count = short_attention.side_by_side(b, n, SIDE_BY_SIDE) if n == m and mask is None else 1
    rows, columns = (-(-count * size // 128) * 128 for size in (n, m))
    heads = features // head_dim
    block_k, block_k_backward = _block(columns, 1024), _block(columns, 4096)
    turned = head_dim % WIDTH != 0
    layout = kernel.QKVLayout.SEQ_MINOR if turned else kernel.QKVLayout.HEAD_DIM_MINOR
    sizes = kernel.BlockSizes(
        block_q=_block(rows, 1024), block_kv=block_k, block_kv_compute=_block(block_k, 512),
        block_q_dkv=_block(rows, 512), block_kv_dkv=block_k_backward,
        block_kv_dkv_compute=_block(block_k_backward, 512), use_fused_bwd_kernel=True,
        q_layout=layout, k_layout=layout, v_layout=layout,
    )  # fmt: skip
    whole = kernel.MultiHeadMask([kernel.FullMask((rows, columns))] * heads)
    run = kernel.make_splash_mha(
        whole, block_sizes=sizes, head_shards=1, q_seq_shards=1, residual_checkpoint_name=FLASH, interpret=interpret
    )

    def laid_out(a: Array, size: int) -> Array:
        """[b, heads, tokens, head_dim] in whole blocks; the kernel turns the last two again for its layout."""
        a = rearrange(a, "(b r) n c -> b (r n) c", r=count)
        a = jnp.pad(a, ((0, 0), (0, size - a.shape[1]), (0, 0)))
        return part_heads(a, heads, turned)

    segments = None
    if mask is not None or columns > count * m or count > 1:
        asks = jnp.pad(jnp.arange(count * n) // n, (0, rows - count * n))
        seen = jnp.ones((1, m), bool) if mask is None else mask[:, 0, 0]
        there = jnp.where(jnp.tile(seen, (1, count)), jnp.arange(count * m) // m, -1)
        there = jnp.pad(there, ((0, 0), (0, columns - count * m)), constant_values=-1)
        over = lambda ids: jnp.broadcast_to(ids, (b // count, ids.shape[-1])).astype(jnp.int32)
        segments = kernel.SegmentIds(over(asks), over(there))
    out = jax.vmap(run)(laid_out(q, rows) * head_dim**-0.5, laid_out(k, columns), laid_out(v, columns), segments)
    out = join_heads(out[:, :, : count * n], count, turned)
    return _or_mean(out, v, mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def part_heads(a: Float[Array, "b n c"], heads: int, turned: bool) -> Float[Array, "b k n d"]:
    """Takes heads apart; `turned`: with the tokens along the rows, as the kernel reads them, but not its gradients."""
    if turned:
        return rearrange(a.swapaxes(1, 2), "b (k d) n -> b k d n", k=heads).swapaxes(2, 3)
    return rearrange(a, "b n (k d) -> b k n d", k=heads)


part_heads.defvjp(
    lambda a, heads, turned: (part_heads(a, heads, turned), None),
    lambda heads, turned, _, slope: (_side_by_side(slope),),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def join_heads(a: Float[Array, "b k m d"], count: int, turned: bool) -> Float[Array, "_ n c"]:
    """Puts heads side by side, and parts the tokens of `count` sequences. A product that follows reads heads of whole
    rows as they are."""
    if turned:
        return rearrange(_side_by_side(a), "b (r n) c -> (b r) n c", r=count)
    return rearrange(a, "b k (r n) d -> (b r) n (k d)", r=count)


join_heads.defvjp(
    lambda a, count, turned: (join_heads(a, count, turned), a.shape),
    lambda count, turned, shape, slope: (
        part_heads(jax.lax.optimization_barrier(slope.reshape(shape[0], shape[2], -1)), shape[1], False),
    ),
)


def _side_by_side(a: Float[Array, "b k n d"]) -> Float[Array, "b n c"]:
    """Heads side by side by a product with the identity, in bf16 and fp16, where that is exact.

    XLA's TPU compiler moves those of 8192 tokens, 512 features, from the outside to each other's side in 185 k cycles
    (v5e); a product reads them as they are, 44 k. The barriers keep a reshape that comes after from being done before.
    """
    if a.dtype not in (jnp.bfloat16, jnp.float16):
        return rearrange(a, "b k n d -> b n (k d)")
    features = a.shape[1] * a.shape[3]
    identity = jnp.eye(features, dtype=a.dtype).reshape(a.shape[1], -1, features)
    return jax.lax.optimization_barrier(jnp.einsum("bknd,kdc->bnc", a, identity))


def tokens_last(head_dim: int) -> bool:
    """Whether attention wants the tokens as the last axis: heads that do not fill a TPU's rows of 128 numbers."""
    return platform() == "tpu" and not kernels.choice().textbook and head_dim % WIDTH != 0


def _block(size: int, most: int) -> int:
    """The largest multiple of 128 up to `most` that divides `size`."""
    return next(block for block in range(most, 0, -128) if size % block == 0)


def _or_mean(out: Array, v: Array, mask: Array | None) -> Array:
    """`out`, but the mean of all values where the mask of keys leaves none."""
    if mask is None:
        return out
    return jnp.where(mask[:, 0, 0].any(-1)[:, None, None], out, v.mean(1, keepdims=True).astype(out.dtype))


def short(q: Array, k: Array, v: Array, head_dim: int, mask: Array | None = None, interpret: bool = False) -> Array:
    """Attention within short sequences as a TPU kernel of our own, for no masks. `interpret`: off TPUs, slowly."""
    return checkpoint_name(short_attention.attend_short(q, k, v, head_dim, interpret), FLASH)


# For `jax.checkpoint`: keep what flash attention puts out, so that it does not run again.
save_flash = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.save_only_these_names(FLASH), lambda prim, *_, **params: prim.name == CUDNN
)

ATTENTION: dict[str, Callable] = {
    "plain": attend_at_once,
    "chunked": chunked,
    "cudnn": cudnn,
    "splash": splash,
    "short": short,
}


def choose_attention(q: Array, k: Array, head_dim: int, mask: Array | None = None) -> str:
    """The fastest entry of `ATTENTION` for these shapes and this dtype on the program's platform."""
    (b, n, features), m, choice = q.shape, k.shape[1], kernels.choice()
    if choice.textbook:
        return "plain"
    of_keys = mask is None or mask.shape[1] == mask.shape[2] == 1
    target = platform() if choice.by_hand and of_keys else ""
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    if target == "gpu" and n >= CHUNK and half and head_dim % 8 == 0 and head_dim <= widest(device_kind()):
        return "cudnn"
    if target == "tpu":
        whole = n == m and mask is None
        count = short_attention.side_by_side(b, n, SIDE_BY_SIDE) if whole else 1
        if count * n >= CHUNK and n > 1:
            return "short" if whole and half and short_attention.fits(b, n, features, head_dim) else "splash"
    return "chunked" if n > CHUNK and b * features // head_dim * n * m > KEPT else "plain"


@functools.cache
def widest(kind: str) -> int:
    """Features of a head that cuDNN's flash attention takes on a GPU of this name: none before Ampere, 128 on it, 256
    on Hopper's and Blackwell's data centre chips."""
    if re.search(r"H100|H200|H20\b|H800|GH200|B100|B200|B300", kind):
        return 256
    old = r"\b[KMP]\d+\b|V100|\bT4\b|Quadro|TITAN|GTX|RTX 20"
    return 128 if kind.startswith("NVIDIA") and not re.search(old, kind) else 0


def attend(
    q: Float[Array, "b n c"],
    k: Float[Array, "b m c"],
    v: Float[Array, "b m c"],
    head_dim: int,
    mask: Bool[Array, "#b #k #n m"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "b n c"]:
    """softmax(q k' / sqrt(d)) v for each head of d = `head_dim` of the features; the mask is true where a query may
    look.

    `implementation` is a name in `ATTENTION`, by default what `choose_attention` says; compiled programs tell it as the
    scope "attention_NAME". A query that may see nothing gets the mean of all values.
    """
    name = implementation or choose_attention(q, k, head_dim, mask)
    with jax.named_scope(f"attention_{name}"):
        return ATTENTION[name](q, k, v, head_dim, mask)
