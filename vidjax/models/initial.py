"""Values that parameters start from, by programs that parameters of many shapes share.

Outside of traces JAX compiles a program for each shape. A model has dozens of shapes, and to compile for them took most
of the time of making it. The numbers that a key gives begin alike, however many they are: a power of two is drawn here,
and the first of them are taken.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

FEWEST = 2**16  # numbers that are drawn
Initializer = Callable[..., Array]  # of (key, shape, dtype)


def uniform_by_fan(scale: float = 1.0) -> Initializer:
    """Uniform numbers whose variance is `scale` over the number of inputs, the product of all axes but the last; with 1
    those of LeCun et al. (1998)."""
    bound = lambda shape: np.sqrt(np.float32(3) * np.float32(scale / math.prod(shape[:-1])))
    return functools.partial(_drawn, _uniform, bound)


def truncated_by_fan(scale: float = 2.0) -> Initializer:
    """Normal numbers without those beyond two deviations, whose variance is `scale` over the number of inputs; with 2
    those of He et al. (2015)."""
    left = np.float32(0.87962566103423978)  # the deviation of what is left of a standard normal distribution
    deviation = lambda shape: np.sqrt(np.float32(scale / math.prod(shape[:-1]))) / left
    return functools.partial(_drawn, _truncated, deviation)


def normal(deviation: float = 1.0) -> Initializer:
    """Normal numbers with this standard deviation."""
    return functools.partial(_drawn, _normal, lambda shape: np.float32(deviation))


def zeros(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Zeros, whatever the key."""
    return constant(0, *shape).astype(dtype)


def constant(value: float | int, *shape: int) -> Array:
    """An fp32 array of one value."""
    if _tracing():
        return jnp.full(shape, value, jnp.float32)
    return jax.device_put(np.full(shape, value, np.float32))


def _drawn(draw: Callable, scale: Callable, key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """The numbers of `draw(key, shape)`, times `scale(shape)`."""
    if _tracing():
        return (scale(shape) * draw(key, tuple(shape))).astype(dtype)
    count = math.prod(shape)
    drawn = draw(key, (max(FEWEST, 1 << (count - 1).bit_length()),))
    return jax.device_put((scale(shape) * np.asarray(drawn)[:count]).reshape(shape)).astype(dtype)


def _tracing() -> bool:
    return isinstance(jnp.zeros(()), jax.core.Tracer)


@functools.partial(jax.jit, static_argnums=1)
def _uniform(key: Array, shape: tuple[int, ...]) -> Array:
    return jax.random.uniform(key, shape, minval=-1.0)


@functools.partial(jax.jit, static_argnums=1)
def _truncated(key: Array, shape: tuple[int, ...]) -> Array:
    return jax.random.truncated_normal(key, -2.0, 2.0, shape)


@functools.partial(jax.jit, static_argnums=1)
def _normal(key: Array, shape: tuple[int, ...]) -> Array:
    return jax.random.normal(key, shape)
