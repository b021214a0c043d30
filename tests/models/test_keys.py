"""Keys that are counted outside of the trace are those that flax counts inside of it."""

import jax
import numpy as np
import pytest
from flax import nnx

from vidjax.models.keys import Keys


@pytest.mark.parametrize("seed", [3, jax.random.key(3, impl="rbg")], ids=["number", "rbg"])
def test_a_model_starts_as_with_the_streams_of_flax(seed):
    def made(rngs):
        layers = [nnx.Linear(3, 4, rngs=rngs), nnx.Conv(4, 5, (3,), rngs=rngs)]
        return [layer.kernel[...] for layer in layers] + [jax.random.key_data(rngs.params())]

    for ours, theirs in zip(jax.jit(lambda: made(Keys(seed)))(), made(nnx.Rngs(seed)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
