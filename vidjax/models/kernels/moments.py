"""Mean and variance, what norms divide by, in as few passes over the numbers as the platform and the dtype allow."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vidjax.models import kernels
from vidjax.models.kernels.sums import total
from vidjax.runtime.platforms import platform

Mean = Callable[[Float[Array, "*s c"]], Float[Array, " *r"]]
STATISTICS = "statistics"  # what of a norm is kept between the passes, by this name in `jax.checkpoint`


def moments(
    x: Float[Array, "*s c"], mean: Mean, pool: Mean | None = None, rounded: DTypeLike | None = None
) -> tuple[Array, Array]:
    """(mean, variance) of x in fp32, by a function that takes means over axes and keeps these as 1. `pool` then takes
    means of such means, which may have an axis more after the first. What the sums give is named `STATISTICS`.

    The variance is that of the differences from the mean. Accelerators, which read memory once where two sums do not
    wait for each other, take E[x^2] - E[x]^2 of bf16 and fp16: of numbers that are rounded to 2^-8 it is as exact,
    unless their mean is hundreds of times their deviation. `rounded`: the dtype that the numbers once had, by default
    that of `x`.
    """
    y, rounded = x.astype(jnp.float32), x.dtype if rounded is None else rounded
    if platform() == "cpu" or kernels.choice().textbook or rounded not in (jnp.bfloat16, jnp.float16):
        whole = lambda y: mean(y) if pool is None else pool(mean(y))
        first = checkpoint_name(whole(y), STATISTICS)
        near = jax.lax.stop_gradient(first)  # whatever it is, what follows is the same, and the gradient has a sum less
        second = checkpoint_name(whole(jnp.square(y - near)), STATISTICS)
        return first, second - jnp.square(first - near)
    first, second = mean(y), mean(jnp.square(y))
    if pool is not None:  # of both at once
        first, second = jnp.unstack(pool(jnp.stack([first, second], 1)), axis=1)
    first, second = (checkpoint_name(number, STATISTICS) for number in (first, second))
    return first, jnp.maximum(second - jnp.square(first), 0)


def mean_over(x: Float[Array, "*s c"], axes: Sequence[int]) -> Float[Array, "*r c"]:
    """Returns the mean over `axes`, which stay, of size 1."""
    return total(x, tuple(axes)) / math.prod(x.shape[axis] for axis in axes)


def mean_of_groups(x: Float[Array, "*s c"], groups: int) -> Float[Array, "*s c"]:
    """Returns the mean of each of `groups` of channels, repeated for its channels. On TPUs a product sums the channels,
    which lie along the lanes."""
    if platform() == "tpu" and not kernels.choice().textbook:
        size = x.shape[-1] // groups
        members = jnp.repeat(jnp.eye(groups, dtype=x.dtype), size, 0)  # [c groups]
        times = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        with jax.named_scope("mean_of_groups"):
            return times(times(x, members) / size, members.T)
    parts = x.reshape(*x.shape[:-1], groups, -1)
    return jnp.broadcast_to(parts.mean(-1, keepdims=True), parts.shape).reshape(x.shape)
