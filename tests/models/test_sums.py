"""Sums that are matrix products, and what is spread, are `sum` and `broadcast_to`, with all their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from as_tpu import on_tpu
from flax import nnx

from vidjax.models.kernels.sums import add_row, largest, repeat, scale_row, spread, total
from vidjax.models.layers import Context, GroupNorm

SHAPE = (3, 4, 5, 6)


def draw(*shape, key=0):
    return jax.random.normal(jax.random.key(key), shape)


def derivatives(function, x):
    """Values and derivatives of the first and second order, backwards, forwards, in turn, and one example at a time."""
    alone = lambda x: jnp.sin(function(x)).sum()
    slope = jax.grad(alone)
    along = jnp.cos(x)
    return jax.jit(
        lambda x: (
            function(x),
            slope(x),
            jax.jvp(function, (x,), (along,))[1],
            jax.jvp(slope, (x,), (along,))[1],
            jax.grad(lambda x: jnp.vdot(slope(x), along))(x),
            jax.vmap(slope)(jnp.stack([x, along])),
        )
    )(x)


def agree(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


@pytest.mark.parametrize("axes", [(0,), (1, 2), (2, 3), (0, 1, 2, 3)])
def test_a_total_is_a_sum(axes):
    x = draw(*SHAPE)
    agree(derivatives(lambda x: total(x, axes), x), derivatives(lambda x: x.sum(axes, keepdims=True), x))


@pytest.mark.parametrize("axes, shape", [((0,), (1, 4, 5, 6)), ((1, 2), (3, 1, 1, 6)), ((0, 1, 2), (6,))])
def test_spread_is_broadcast(axes, shape):
    x, y = draw(*shape), draw(*SHAPE, key=1)
    ours, theirs = (lambda x: y * spread(x, SHAPE, axes)), (lambda x: y * jnp.broadcast_to(x, SHAPE))
    agree(derivatives(ours, x), derivatives(theirs, x))


def test_a_row_scales_and_is_added_to_all():
    """On TPUs, where the gradients of many rows are products, and elsewhere."""
    x, row = draw(40, 60, 6, key=1), draw(6) / 50
    ours, theirs = (lambda row: add_row(scale_row(x, row), row)), (lambda row: x * row + row)
    values, traced = on_tpu(lambda row: derivatives(ours, row), row)
    assert "dot_general" in traced
    wanted = derivatives(theirs, row)
    agree(values, wanted)
    agree(derivatives(ours, row), wanted)


@pytest.mark.parametrize(
    "ours, theirs, shape",
    [
        (lambda x: total(x, (1,)) ** 2, lambda x: x.sum(1, keepdims=True) ** 2, SHAPE),
        (lambda x: repeat(x, 4, 1) ** 2, lambda x: jnp.broadcast_to(x, SHAPE) ** 2, (3, 1, 5, 6)),
    ],
    ids=["total", "repeat"],
)
def test_a_tpu_adds_few_frames_one_to_the_next(ours, theirs, shape):
    x = draw(*shape)
    (values, traced), (wanted, plain) = (on_tpu(lambda x, f=f: derivatives(f, x), x) for f in (ours, theirs))
    over_frames = "axes=(1,)"
    assert traced.count(over_frames) < plain.count(over_frames)
    agree(values, wanted)
    agree(derivatives(ours, x), wanted)


@pytest.mark.parametrize("n", [1, 8, 77, 96])
def test_the_largest_is_the_maximum(n):
    x = draw(7, n)
    np.testing.assert_array_equal(jax.jit(largest)(x), x.max(-1, keepdims=True))


def test_derivatives_of_group_norm_are_those_of_its_definition():
    norm = GroupNorm(6, 3, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = draw(6, key=1), draw(6, key=2)

    def definition(x):
        groups = x.reshape(*x.shape[:-1], 3, 2)
        apart = groups - groups.mean((2, 3, 5), keepdims=True)
        found = apart / jnp.sqrt(jnp.square(apart).mean((2, 3, 5), keepdims=True) + norm.eps)
        return found.reshape(x.shape) * norm.scale[...] + norm.bias[...]

    x = draw(2, 3, 4, 5, 6) + 3
    agree(derivatives(lambda x: norm(x, Context(jnp.zeros((2, 3, 1)))), x), derivatives(definition, x))
