"""What parameters start from is the same inside of traces and outside, where shapes share programs."""

import jax
import numpy as np
import pytest
from flax import nnx

from vidjax.models.initial import FEWEST, constant, normal, truncated_by_fan, uniform_by_fan, zeros
from vidjax.runtime.compiling import count_compiled

SHAPES = [(1, 1), (3, 3, 6, 10), (2, 1 + FEWEST // 2)]  # the last one draws twice as many
INITIALIZERS = {  # of flax, and ours
    "uniform": (nnx.initializers.lecun_uniform(), uniform_by_fan()),
    "scaled": (nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), uniform_by_fan(1 / 3)),
    "truncated": (nnx.initializers.he_normal(), truncated_by_fan()),
    "normal": (nnx.initializers.normal(0.3), normal(0.3)),
    "zeros": (nnx.initializers.zeros, zeros),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["rbg", "threefry2x32"])
@pytest.mark.parametrize("name", INITIALIZERS)
def test_numbers_are_those_of_flax_whether_traced_or_not(name, kind, shape):
    flax, ours = INITIALIZERS[name]
    key = jax.random.key(3, impl=kind)
    wanted = np.asarray(flax(key, shape))
    for found in (ours(key, shape), jax.jit(lambda key: ours(key, shape))(key)):  # which multiply in other orders
        np.testing.assert_array_max_ulp(np.asarray(found), wanted, 1)


def test_a_new_shape_compiles_nothing_outside_of_traces():
    init = lambda shape: (uniform_by_fan()(key, shape), normal()(key, shape), constant(1, *shape), zeros(key, shape))
    key = jax.random.key(0)
    init((3, 5))
    before = count_compiled()
    for shape in SHAPES[:-1]:
        init(shape)
    assert count_compiled().programs == before.programs
