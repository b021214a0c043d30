"""Sums over pixels, numbers spread over pixels, the gradient of which is such a sum, and the largest of a row."""

import functools
from math import prod

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidjax.models import kernels
from vidjax.models.kernels.placement import tpu_has_whole_clips, ways
from vidjax.runtime.platforms import platform

Axes = tuple[int, ...]  # neighbours
ROWS = 8  # of a TPU's registers, which hold 8 x 128 numbers
MANY = 256  # rows, of which a TPU takes the sum as a product
FEW = 8  # arrays, which a TPU adds one to the next


def as_products() -> bool:
    """Whether a sum is a matrix product with ones: on CPUs, where axes that are cut over devices need not become one.

    XLA's CPU compiler computes what a sum adds up inside of the sum, number by number, and again in the next sum; what
    a product takes it computes once. Milliseconds of two AVX-512 cores for group normalisation over a clip and SiLU,
    8 x 32 x 32 x 320, forward and gradient: with sums 12 and 88, with products 6 and 15.
    """
    return not kernels.choice().textbook and platform() == "cpu" and ways("context") == 1


def thirds(shape: tuple[int, ...], axes: Axes) -> tuple[int, int, int]:
    """How many numbers lie along the axes before `axes`, along these, and along those after."""
    first, last = axes[0], axes[-1] + 1
    return prod(shape[:first]), prod(shape[first:last]), prod(shape[last:])


def narrowed(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """Returns the shape of a sum over `axes` that keeps them, of size 1."""
    return tuple(1 if axis in axes else n for axis, n in enumerate(shape))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def total(x: Float[Array, " *s"], axes: Axes) -> Float[Array, " *r"]:
    """The sum over neighbouring axes, each of which stays, of size 1; over one that is short, as of `repeat`."""
    if len(axes) == 1 and x.shape[axes[0]] <= FEW and tpu_has_whole_clips():
        return sum(jnp.split(x, x.shape[axes[0]], axes[0]))
    if not as_products():
        return x.sum(axes, keepdims=True)
    before, n, after = thirds(x.shape, axes)
    ones = jnp.ones((before, 2, n), x.dtype)  # two rows, for one would not be taken for a product of matrices
    return (ones @ x.reshape(before, n, after))[:, 0].reshape(narrowed(x.shape, axes))


total.defjvp(lambda axes, x, slope: (total(*x, axes), slope[0].sum(axes, keepdims=True)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def spread(x: Float[Array, " *r"], shape: tuple[int, ...], axes: Axes) -> Float[Array, " *s"]:
    """`jnp.broadcast_to`, where `x` has size 1, or nothing, along the neighbouring `axes`."""
    return jnp.broadcast_to(x, shape)


@spread.defjvp
def _(shape: tuple[int, ...], axes: Axes, x: tuple[Array], slope: tuple[Array]) -> tuple[Array, Array]:
    out = spread(*x, shape, axes)
    if not as_products():
        return out, jnp.broadcast_to(*slope, shape)
    before, n, after = thirds(shape, axes)
    rows = jnp.broadcast_to(*slope, narrowed(shape, axes)).reshape(before, 1, after) / 2
    return out, (jnp.ones((before, n, 2), rows.dtype) @ jnp.repeat(rows, 2, 1)).reshape(shape)


def repeat(x: Float[Array, " *r"], times: int, axis: int) -> Float[Array, " *s"]:
    """`jnp.repeat` along an axis of size 1, with a gradient that adds one array to the next.

    By their compiler's cycles TPUs are slow to sum few large arrays along an axis: 32 clips of 4 frames of 256 x 512
    numbers take a v5p 277 k, of which to read them takes 42 k. Level 1 of `lvdm:sky`, in millions of cycles, with sums
    along axes and as here and in `total`: v5p, 32 clips, 14.8, 12.8; v5e, 24 clips, 17.8, 17.6; v5e, 8 clips, which lie
    in its fast memory, 5.4, 5.6. In bf16 each addition rounds. What norms `spread` is better summed along the axis.
    """
    return jnp.concatenate([x] * times, axis)


def add_row(x: Float[Array, "*s c"], row: Float[Array, " c"]) -> Float[Array, "*s c"]:
    """`x + row`, whose gradient for the row, a sum over all other axes, is on TPUs a product with ones.

    Their compiler's cycles of that sum of 8192 x 512 numbers in bf16, for v5e: 109 k, or 59 k together with what makes
    them; as a product 4 k, though to read them takes 15 k.
    """
    return x + (_spread_row(row, x.shape) if _many_rows(x) else row)


def scale_row(x: Float[Array, "*s c"], row: Float[Array, " c"]) -> Float[Array, "*s c"]:
    """`x * row`, with the gradient for the row as in `add_row`."""
    return x * (_spread_row(row, x.shape) if _many_rows(x) else row)


def add_bias(y: Float[Array, "*s c"], bias: Float[Array, " c"]) -> Float[Array, "*s c"]:
    """Adds a number to each channel of maps, in the form whose gradient the platform computes fastest."""
    return add_row(y, bias) if platform() == "tpu" else y + spread(bias, y.shape, tuple(range(y.ndim - 1)))


def _many_rows(x: Array) -> bool:
    return platform() == "tpu" and not kernels.choice().textbook and prod(x.shape[:-1]) >= MANY


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _spread_row(row: Float[Array, " c"], shape: tuple[int, ...]) -> Float[Array, "*s c"]:
    return jnp.broadcast_to(row, shape)


@_spread_row.defjvp
def _(shape: tuple[int, ...], row: tuple[Array], slope: tuple[Array]) -> tuple[Array, Array]:
    rows = jnp.broadcast_to(*slope, (ROWS, shape[-1])) / ROWS
    ones = jnp.ones((*shape[:-1], ROWS), rows.dtype)
    with jax.named_scope("sum_of_rows"):
        return _spread_row(*row, shape), jnp.matmul(ones, rows, precision=jax.lax.Precision.HIGHEST)


def largest(x: Float[Array, "*s n"]) -> Float[Array, "*s 1"]:
    """The maximum over the last axis, which stays. On CPUs by halves, one against the other: XLA's CPU compiler takes
    a row's numbers one by one. Attention over 256 tokens, 64 heads of 32: 14.7 ms of a core, so 12.7."""
    if platform() == "cpu":
        while x.shape[-1] > 8 and x.shape[-1] % 2 == 0:
            x = jnp.maximum(*jnp.split(x, 2, -1))
    return x.max(-1, keepdims=True)
