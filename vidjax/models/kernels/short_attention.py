"""Attention within short sequences as a TPU kernel that reads and writes features as the products beside it do."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TILE = 16  # rows of a TPU's memory, in bf16
ROWS = 128  # tokens of sequences so short that several go together
QUERIES = 256  # at a time, of a sequence of more; not less than `ROWS`, of which each knows its own sequence
HEADS = 40  # each of which has its own code in the kernel, which compiles in a second for each
MOST = 5 * 2**16  # numbers of a sequence: keys, values, gradients and sums of so many fit a TPU kernel's VMEM


def side_by_side(batch: int, tokens: int, most: int, tile: int = 1) -> int:
    """How many sequences make at most `most` tokens, in whole tiles: a divisor of the batch, 1 if there is none."""
    counts = range(most // tokens, 1, -1)
    return next((count for count in counts if batch % count == count * tokens % tile == 0), 1)


def queries(n: int) -> int:
    """How many of `n` queries a step takes: whole tiles, and at most `QUERIES`."""
    return next(count for count in range(min(n, QUERIES), 0, -1) if n % count == count % TILE == 0)


def fits(batch: int, n: int, features: int, head_dim: int) -> bool:
    """Whether `attend_short` takes so many sequences of `n` tokens.

    Heads need not fill rows: by the kernels' compiled schedules for v5e, forward and backward with all that lays out
    for them, 8 sequences of 256 tokens and 16 heads of 32 take 261 k cycles so, 603 k by `splash`; 8 heads of 80 171 k
    and 381 k; 4 sequences of 1,024 tokens and 8 heads of 32 633 k and 856 k, of 40 806 k and 907 k.
    """
    rows = n * side_by_side(batch, n, ROWS, TILE)
    if rows % TILE or n > 1024 or head_dim % 8 or features > HEADS * head_dim:
        return False
    return queries(rows) >= ROWS // 2 and max(n, ROWS) * features <= MOST


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def attend_short(
    q: Float[Array, "b n c"],
    k: Float[Array, "b n c"],
    v: Float[Array, "b n c"],
    head_dim: int,
    interpret: bool,
) -> Float[Array, "b n c"]:
    """softmax(q k' / sqrt(d)) v for each head of d = `head_dim` of the features.

    A step of the kernel has all keys of its queries, so nothing is kept for the backward pass but what goes in, and
    heads need not be laid out apart: each is a part of the rows.
    """
    return _run(_forward, 1, (q, k, v), head_dim, interpret)


attend_short.defvjp(
    lambda q, k, v, *how: (attend_short(q, k, v, *how), (q, k, v)),
    lambda head_dim, interpret, kept, slope: tuple(_run(_backward, 3, (*kept, slope), head_dim, interpret)),
)


def _run(kernel: Callable, outputs: int, arrays: tuple[Array, ...], head_dim: int, interpret: bool) -> Any:
    """Runs a kernel on blocks of whole sequences, some of their queries (the first array, what comes out for them,
    and the slope of that) at a time; it returns one array, or a list of several."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    b, n, c = arrays[0].shape
    together = side_by_side(b, n, ROWS, TILE)
    shape = (b // together, together * n, c)
    count = queries(shape[1])
    some = pl.BlockSpec((None, count, c), lambda i, j: (i, j, 0))
    every = pl.BlockSpec((None, *shape[1:]), lambda i, j: (i, 0, 0))
    run = pl.pallas_call(
        functools.partial(kernel, head_dim=head_dim, tokens=n),
        grid=(shape[0], shape[1] // count),
        in_specs=[some, every, every, some][: len(arrays)],
        out_specs=[some, every, every][:outputs],
        out_shape=[jax.ShapeDtypeStruct(shape, arrays[0].dtype)] * outputs,
        scratch_shapes=[pltpu.VMEM(shape[1:], jnp.float32)] * (outputs - 1),
        name=f"short_attention_{head_dim}{kernel.__name__}",
        interpret=interpret,
    )
    made = [a.reshape(b, n, c) for a in run(*(a.reshape(shape) for a in arrays))]
    return made if outputs > 1 else made[0]


def _forward(q, k, v, out, *, head_dim: int, tokens: int) -> None:
    for at in _heads(q, head_dim):
        out[:, at] = _times(_weights(q[:, at], k[:, at], tokens), v[:, at]).astype(out.dtype)


def _backward(q, k, v, slope, to_q, to_k, to_v, sum_k, sum_v, *, head_dim: int, tokens: int) -> None:
    """The gradients of keys and values are summed over the queries, in fp32."""
    from jax.experimental import pallas as pl

    @pl.when(pl.program_id(1) == 0)
    def _():
        sum_k[...], sum_v[...] = jnp.zeros_like(sum_k), jnp.zeros_like(sum_v)

    for at in _heads(q, head_dim):
        w = _weights(q[:, at], k[:, at], tokens)
        sum_v[:, at] += _times(w, slope[:, at], 0)
        to_w = _product(slope[:, at], v[:, at], (1, 1))
        to_e = w * (to_w - (w * to_w).sum(-1, keepdims=True)) * head_dim**-0.5
        to_q[:, at] = _times(to_e, k[:, at]).astype(to_q.dtype)
        sum_k[:, at] += _times(to_e, q[:, at], 0)

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
        to_k[...], to_v[...] = sum_k[...].astype(to_k.dtype), sum_v[...].astype(to_v.dtype)


def _heads(x, head_dim: int) -> list[slice]:
    return [slice(at, at + head_dim) for at in range(0, x.shape[-1], head_dim)]


def _weights(q: Float[Array, "n d"], k: Float[Array, "m d"], tokens: int) -> Float[Array, "n m"]:
    """What each query takes of each key, of none of another sequence's."""
    e = _product(q, k, (1, 1)) * q.shape[-1] ** -0.5
    if len(k) > tokens:
        own = lambda axis: jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, e.shape, axis), tokens)
        e = jnp.where(own(0) == own(1), e, -1e30)
    w = jnp.exp(e - e.max(-1, keepdims=True))
    return w / w.sum(-1, keepdims=True)


def _times(w: Float[Array, "n m"], x: Float[Array, "_ d"], axis: int = 1) -> Float[Array, "_ d"]:
    return _product(w.astype(x.dtype), x, (axis, 0))


def _product(x: Array, y: Array, axes: tuple[int, int]) -> Array:
    """Sums over one axis of each, in fp32."""
    return jax.lax.dot_general(x, y, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32)
