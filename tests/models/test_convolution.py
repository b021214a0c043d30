"""Every route through the convolution is XLA's own convolution, in value and in gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from vidjax.models.convolution import Conv, ConvTranspose
from vidjax.models.kernels.convolution import (
    choose_columns,
    convolve,
    convolve_transposed,
    depthwise,
    repeat_borders,
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


CASES = {  # input, kernel, strides, padding
    "tiny map": ((3, 2, 2, 3, 6), (3, 3), 1, None),
    "tiny, strided": ((3, 3, 5, 6), (3, 3), 2, None),
    "many channels": ((4, 6, 5, 64), (3, 3), 1, None),
    "fewer pixels than channels": ((1, 11, 11, 130), (3, 3), 1, None),
    "large map": ((2, 13, 14, 3), (3, 3), 1, None),
    "large, strided, one-sided": ((1, 24, 22, 2), (3, 3), 2, [(0, 1), (0, 1)]),
    "pointwise": ((2, 5, 4, 3), (1, 1), 1, None),
    "over time": ((2, 5, 3, 4, 6), (3, 1, 1), 1, None),
    "over time, strided": ((2, 6, 3, 4, 6), (3, 1, 1), (2, 1, 1), None),
    "per frame in three axes": ((2, 3, 4, 4, 5), (1, 3, 3), (1, 2, 2), None),
    "space-time": ((2, 4, 5, 6, 3), (3, 3, 3), 1, None),
    "space-time, four columns as one": ((1, 3, 4, 8, 3), (3, 3, 3), (1, 2, 1), [(2, 0), (1, 1), (0, 2)]),
    "space-time, four columns as two": ((1, 4, 5, 9, 3), (4, 4, 4), 2, [(1, 1)] * 3),
    "space-time, odd columns": ((1, 3, 4, 7, 3), (3, 3, 3), 1, None),
    "space-time, strided, lopsided": ((1, 4, 6, 8, 3), (4, 4, 4), (1, 2, 2), [(2, 1), (1, 1), (1, 1)]),
    "one axis": ((2, 9, 3), (3,), 2, None),
}


@pytest.mark.parametrize("name", CASES)
def test_every_form_equals_plain_in_value_and_gradient(name):
    shape, size, strides, padding = CASES[name]
    x, kernel = normal(0, *shape), normal(1, *size, shape[-1], 64 if shape[-1] == 64 else 4)
    kernel /= np.sqrt(kernel[..., 0].size)
    results = []
    for implementation in ("plain", "folded", "planes", "stacked"):

        @jax.jit
        def value_and_gradients(x, kernel, implementation=implementation):
            y, pull = jax.vjp(lambda x, k: convolve(x, k, strides, padding, implementation=implementation), x, kernel)
            return y, *pull(jnp.cos(y))

        results.append(value_and_gradients(x, kernel))
    for plain, *others in zip(*results):
        for other in others:
            np.testing.assert_allclose(other, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["large map", "large, strided, one-sided"])
def test_gradients_of_gradients_are_those_of_plain_too(name):
    """What reconstruction guidance and the adaptive weight of an adversary are differentiated through."""
    shape, size, strides, padding = CASES[name]
    x, kernel = normal(0, *shape), normal(1, *size, shape[-1], 4) / 3
    results = []
    for implementation in ("plain", "folded"):
        value = lambda x, k, i=implementation: jnp.sin(convolve(x, k, strides, padding, implementation=i)).sum()
        steepness = lambda x, k, value=value: sum(jnp.square(g).sum() for g in jax.grad(value, (0, 1))(x, k))
        results.append(jax.jit(jax.grad(steepness, (0, 1)))(x, kernel))
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_conv_is_the_flax_convolution_with_the_same_parameters():
    ours = Conv(3, 4, (3, 3, 3), strides=(1, 2, 2), rngs=nnx.Rngs(0))
    theirs = nnx.Conv(3, 4, (3, 3, 3), strides=(1, 2, 2), padding=[(1, 1)] * 3, rngs=nnx.Rngs(1))
    ours.bias[...] = normal(1, 4)
    nnx.update(theirs, nnx.state(ours, nnx.Param))
    x = normal(2, 2, 4, 7, 8, 3)
    np.testing.assert_allclose(jax.jit(ours)(x), jax.jit(theirs)(x), atol=1e-5)


@pytest.mark.parametrize("size, stride", [(3, 1), (5, 2)])
def test_filters_of_single_channels_are_a_grouped_convolution(size, stride):
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(s, np.float32) for s in ((2, 9, 12, 7), (size, size, 1, 7)))
    pads = lax.padtype_to_pads((9, 12), (size, size), (stride, stride), "SAME")
    expected = lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=7
    )
    got = depthwise(jnp.asarray(x), jnp.asarray(kernel), (stride, stride), pads)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_edge_padding_repeats_the_border():
    x, kernel = normal(0, 2, 3, 4, 5, 2), normal(1, 3, 3, 3, 2, 4)
    bordered = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)), mode="edge")
    inside = convolve(bordered, kernel, padding=[(0, 0)] * 3)
    np.testing.assert_allclose(convolve(x, kernel, mode="edge"), inside, atol=1e-5)
    constant = convolve(jnp.ones_like(x), kernel, mode="edge")
    np.testing.assert_allclose(constant, jnp.broadcast_to(kernel.sum((0, 1, 2, 3)), constant.shape), atol=1e-4)


@pytest.mark.parametrize("name, columns", [("four columns as one", 4), ("four columns as two", 4), ("odd columns", 1)])
def test_columns_side_by_side_repeat_the_same_borders(name, columns):
    shape, size, strides, padding = CASES[f"space-time, {name}"]
    x, kernel = normal(0, *shape), normal(1, *size, shape[-1], 4)
    steps = (strides,) * 3 if isinstance(strides, int) else strides
    assert choose_columns(x.shape, kernel.shape, steps, tuple(padding or [(1, 1)] * 3)) == columns
    run = lambda how: convolve(x, kernel, strides, padding, "edge", implementation=how)
    np.testing.assert_allclose(run("planes"), run("plain"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cin, cout, columns", [(64, 64, 2), (64, 128, 2), (128, 64, 1), (3, 64, 4), (3, 128, 2)])
def test_columns_side_by_side_fill_rows(cin, cout, columns):
    assert choose_columns((1, 16, 64, 64, cin), (3, 3, 3, cin, cout), (1, 1, 1), ((1, 1),) * 3) == columns


@pytest.mark.parametrize("implementation", ["plain", "folded", "planes", "stacked"])
@pytest.mark.parametrize("name", ["space-time", "large map", "one axis"])
def test_no_maps_give_none(name, implementation):
    (_, *shape), size, strides, padding = CASES[name]
    y = convolve(
        jnp.zeros((0, *shape)), normal(0, *size, shape[-1], 4), strides, padding, implementation=implementation
    )
    assert y.size == 0 and y.ndim == 1 + len(shape)


@pytest.mark.parametrize("platform, kind", [("tpu", "TPU v5 lite"), ("cuda", "NVIDIA H100")])
@pytest.mark.parametrize("pads", [((1, 1), (2, 1), (0, 3)), ((0, 0), (1, 2), (2, 0))])
def test_accelerators_repeat_the_same_borders(pads, platform, kind):
    """In value, along a direction, and back."""
    single = normal(0, 2, 1, 4, 5, 3)  # a frame that is its own first and last

    def everything(pad, x=single):
        y, along = jax.jvp(pad, (x,), (jnp.cos(x),))
        return y, along, *jax.vjp(pad, x)[1](jnp.sin(y)), jax.vmap(pad)(x[None])[0]

    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)):
        traced = jax.make_jaxpr(lambda x: everything(lambda x: repeat_borders(x, pads), x))(single)
    got = jax.jit(lambda x: jax.core.eval_jaxpr(traced.jaxpr, traced.consts, x))(single)
    for a, b in zip(got, everything(lambda x: jnp.pad(x, ((0, 0), *pads, (0, 0)), mode="edge")), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strides", [(2, 2, 2), (1, 2, 2)])
def test_transposed_convolution_slides_over_the_stretched_input(strides):
    layer = ConvTranspose(3, 5, (4, 4, 4), strides, "edge", rngs=nnx.Rngs(0))
    layer.bias[...] = normal(3, 5)
    x = normal(1, 2, 3, 2, 4, 3)
    pads = [((4 - s + 1) // 2, (4 - s) // 2) for s in strides]
    stretched = lax.conv_general_dilated(
        jnp.pad(x, ((0, 0), *pads, (0, 0)), mode="edge"),
        layer.kernel[...],
        (1, 1, 1),
        [(0, 0)] * 3,
        lhs_dilation=strides,
        dimension_numbers=("NTHWC", "THWIO", "NTHWC"),
    )
    np.testing.assert_allclose(jax.jit(layer)(x), stretched + layer.bias[...], atol=1e-4)


def test_transposed_stride_one_is_a_convolution():
    x, kernel = normal(0, 2, 5, 6, 3), normal(1, 3, 3, 3, 4)
    np.testing.assert_allclose(convolve_transposed(x, kernel, (1, 1)), convolve(x, kernel), atol=1e-5)
    with pytest.raises(ValueError, match="stride 2 goes with kernel 4"):
        convolve_transposed(x, kernel, (2, 2))


def test_dtype_in_is_dtype_out_and_zero_starts_at_zero():
    layer = Conv(4, 4, zero=True, rngs=nnx.Rngs(0))
    x = normal(0, 2, 4, 4, 4).astype(jnp.bfloat16)
    assert layer(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(layer(x), jnp.zeros_like(x))
