"""CLIP's towers, beside what tests/parity compares with transformers."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from vidjax.models.clip import ClipImage, ClipImageConfig, ClipText, ClipTextConfig
from vidjax.models.keys import OneKey
from vidjax.models.parameters import abstract_parameters, merge

SMALL = dict(dim=8, hidden=16, layers=1, heads=2)
TOWERS = [
    (lambda: ClipText(ClipTextConfig(**SMALL, vocabulary=9, length=4), rngs=OneKey()), (2, 4), jnp.int32),
    (lambda: ClipImage(ClipImageConfig(**SMALL, size=8, patch=4), rngs=OneKey()), (2, 8, 8, 3), jnp.bfloat16),
]


@pytest.mark.parametrize(("make", "shape", "dtype"), TOWERS)
def test_a_tower_computes_in_the_dtype_of_its_parameters(make, shape, dtype):
    model = nnx.eval_shape(make)
    params = {p: jax.ShapeDtypeStruct(v.shape, jnp.bfloat16) for p, v in abstract_parameters(model).items()}
    see = lambda params, x: merge(nnx.graphdef(model), params)(x)
    found = jax.eval_shape(see, params, jax.ShapeDtypeStruct(shape, dtype))
    assert {each.dtype for each in found} == {jnp.dtype("bfloat16")}
