"""Random keys for the parameters of a model that is being made inside a trace.

A stream of `nnx.Rngs` keeps its count in an array, and to raise that in a trace takes JAX as long as the trace is: for
models of many layers it is most of the time. These give keys without it.
"""

import itertools

import jax
from flax import nnx


class OneKey(nnx.Rngs):
    """The same key for every parameter, where only shapes matter."""

    def __init__(self):
        pass

    def params(self) -> jax.Array:
        """Returns the one key."""
        return jax.random.key(0)


class Keys(nnx.Rngs):
    """The keys that `nnx.Rngs(key)` gives, one after the other."""

    def __init__(self, key: jax.Array | int):
        first = jax.random.key(key) if isinstance(key, int) else key
        self._next = map(lambda count: jax.random.fold_in(first, count), itertools.count()).__next__

    def params(self) -> jax.Array:
        """Returns the next key."""
        return self._next()
