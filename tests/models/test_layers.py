"""Norms against their definitions, sampling against indices, order and precision."""

from statistics import NormalDist

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vidjax.models.kernels.products import gelu, product
from vidjax.models.layers import (
    Context,
    Downsample,
    GroupNorm,
    LayerNorm,
    Positions,
    ResBlock,
    Sequential,
    Upsample,
    apart,
    linear,
    silu_norm,
    sinusoid,
)


def context(b, t, **more):
    return Context(jax.random.normal(jax.random.key(9), (b, t, 6)), **more)


def video(*shape):
    return jax.random.normal(jax.random.key(0), shape) * 2 + 1


@pytest.mark.parametrize(
    "over, pattern",
    [
        ("frame", "b t h w (g c) -> (b t g) (h w c)"),
        ("clip", "b t h w (g c) -> (b g) (t h w c)"),
        ("pixel", "b t h w (g c) -> (b h w g) (t c)"),
    ],
)
def test_group_norm_statistics(over, pattern):
    x = video(2, 3, 4, 5, 6)
    norm = GroupNorm(6, 2, eps=1e-5, over=over, rngs=nnx.Rngs(0))
    y = jax.jit(lambda x: norm(x, context(2, 3)))(x)
    rows, out = (np.asarray(einops.rearrange(a, pattern, g=2), np.float64) for a in (x, y))
    expected = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_group_norm_of_one_batch_axis_is_flax_s():
    x = video(2, 1, 4, 5, 6)
    expected = nnx.GroupNorm(6, 3, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0))(x[:, 0])
    np.testing.assert_allclose(GroupNorm(6, 3, rngs=nnx.Rngs(0))(x, context(2, 1))[:, 0], expected, atol=1e-5)


def test_norms_are_exact_far_from_zero():
    """The variance is not a difference of large squares."""
    x = video(1, 1, 4, 4, 8)
    for norm in (GroupNorm(8, 2, rngs=nnx.Rngs(0)), LayerNorm(8, rngs=nnx.Rngs(0))):
        apply = jax.jit(lambda x, norm=norm: norm(x, context(1, 1)))
        np.testing.assert_allclose(apply(x + 1000), apply(x), atol=2e-3)


def test_stage_keeps_its_order_through_split_and_merge():
    scale = lambda a: nnx.Linear(1, 1, kernel_init=nnx.initializers.constant(a), rngs=nnx.Rngs(0))

    class Layer(nnx.Module):
        def __init__(self, a, b):
            self.linear, self.b = scale(a), b

        def __call__(self, x, ctx):
            return self.linear(x) + self.b

    stage = nnx.merge(*nnx.split(Sequential(z=Layer(2.0, 0.0), a=Layer(1.0, 1.0))))
    assert stage(jnp.ones((1, 1, 1)), context(1, 1)).item() == 3.0  # 2 x + 1, not 2 (x + 1)


@pytest.mark.parametrize("height, width", [(6, 8), (5, 7)])
def test_upsampling_takes_the_nearest(height, width):
    layer = Upsample(2, rngs=nnx.Rngs(0))
    x = video(1, 2, 3, 4, 2)
    rows, cols = np.arange(height) * 3 // height, np.arange(width) * 4 // width
    routes = jax.jit(lambda x, y: (layer(x, context(1, 2, size=(height, width))), layer.conv(y)))
    got, expected = routes(x, np.asarray(x)[:, :, rows][:, :, :, cols])
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("border", [1, 2])
@pytest.mark.parametrize("height", [5, 8])
def test_rows_come_back_to_where_they_were(height, border):
    """With kernels that pass on their middle, a row that was halved and doubled is itself or its neighbour."""
    down, up = (kind(1, border, rngs=nnx.Rngs(0)) for kind in (Downsample, Upsample))
    for layer in (down, up):
        layer.conv.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
    rows = jnp.broadcast_to(jnp.arange(float(height))[:, None], (height, 4))[None, None, ..., None]
    small = down(rows, context(1, 1))
    assert small.shape[2:4] == ((height + 1) // 2 + border - 1, 2)
    back = up(small, context(1, 1, size=(height, 4)))
    assert back.shape == rows.shape
    inside = slice(0, height - (border - 1))  # below the last row a border of two sees one of zeros
    assert jnp.abs(back - rows)[:, :, inside].max() <= 1
    if height % 2 == 0:
        assert up(small, context(1, 1)).shape == rows.shape


def test_apart_is_a_call_for_the_video_and_one_for_each_still():
    layer = GroupNorm(4, 2, over="clip", rngs=nnx.Rngs(0))
    x, ctx = video(2, 5, 3, 3, 4), context(2, 5, images=2)

    @jax.jit
    def routes(x):
        parts = [layer(part, context(2, part.shape[1])) for part in (x[:, :3], x[:, 3:4], x[:, 4:])]
        return apart(layer, x, ctx), layer(x, ctx), jnp.concatenate(parts, 1)

    for route in routes(x):
        np.testing.assert_allclose(route, routes(x)[2], atol=1e-6)


def test_resblock_over_time_sees_the_other_frames_and_one_on_frames_does_not():
    x, ctx = video(1, 3, 4, 4, 4), context(1, 3)
    for kernel, over in (((3, 3), "frame"), ((3, 1, 1), "clip")):
        block = ResBlock(4, 4, 6, kernel, over, groups=2, rngs=nnx.Rngs(0))
        graph, params = nnx.split(block)
        apply = jax.jit(lambda params, x, graph=graph: nnx.merge(graph, params)(x, ctx))
        np.testing.assert_array_equal(apply(params, x), x)  # at the start
        params["conv2"]["kernel"].set_value(jax.random.normal(jax.random.key(1), (*kernel, 4, 4)))
        changed = apply(params, x.at[:, 2].add(video(4, 4, 4)))
        same = np.allclose(changed[:, 0], apply(params, x)[:, 0], atol=1e-6)
        assert same == (over == "frame")


def test_sinusoid():
    t, dim = np.array([[0.0, 3.0], [999.0, 0.5]]), 8
    angles = t[..., None] / 10_000 ** (np.arange(4) / 4)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], -1)
    np.testing.assert_allclose(sinusoid(jnp.asarray(t, jnp.float32), dim), expected, atol=1e-4)


def test_positions_tell_pixels_apart_and_start_at_nothing():
    graph, params = nnx.split(Positions(8, rngs=nnx.Rngs(0)))

    @jax.jit
    def routes(params):
        layer, x = nnx.merge(graph, params), jnp.zeros((1, 3, 5, 4, 8))
        return layer(x, context(1, 3)), layer(x[:, :2, :3], context(1, 2)), layer(x, context(1, 3, images=1))

    assert not np.any(routes(params)[0])
    params["mlp"]["linear_2"]["kernel"].set_value(jax.random.normal(jax.random.key(0), (8, 8)))
    whole, small, with_still = (np.asarray(a) for a in routes(params))
    assert len(np.unique(whole.reshape(-1, 8).round(4), axis=0)) == 60
    np.testing.assert_allclose(small, whole[:, :2, :3], atol=1e-6)  # another size keeps what it shares
    np.testing.assert_allclose(with_still[:, 2], whole[:, 0], atol=1e-6)  # a still is a clip of one frame


def test_an_activated_norm_is_its_silu_and_keeps_next_to_nothing():
    x, ctx = video(1, 2, 8, 8, 6), context(1, 2)
    norm = GroupNorm(6, 2, rngs=nnx.Rngs(0))
    value, pull = jax.vjp(lambda x: silu_norm(norm, x, ctx), x)
    expected, pull_expected = jax.vjp(lambda x: jax.nn.silu(norm(x, ctx)), x)
    np.testing.assert_allclose(value, expected, atol=1e-6)
    np.testing.assert_allclose(pull(x)[0], pull_expected(x)[0], atol=1e-5)
    kept = lambda pull: sum(leaf.size for leaf in jax.tree.leaves(pull))
    assert kept(pull) < 1.3 * x.size and kept(pull_expected) > 3 * x.size


@pytest.mark.parametrize("images", [0, 1])
@pytest.mark.parametrize("over", ["frame", "clip", "pixel"])
def test_a_norm_scales_and_shifts_what_it_gives(over, images):
    norm = GroupNorm(6, 2, over=over, rngs=nnx.Rngs(0))
    x, ctx = video(2, 3, 4, 5, 6), context(2, 3, images=images)
    film = [jax.random.normal(jax.random.key(i), (2, 3, 1, 1, 6)) for i in (1, 2)]
    run = lambda layer: jax.jit(jax.value_and_grad(lambda *args: jnp.sin(layer(*args)).sum(), (0, 1, 2)))(x, *film)
    ours = run(lambda x, scale, shift: norm(x, ctx, scale, shift))
    theirs = run(lambda x, scale, shift: norm(x, ctx) * (1 + scale) + shift)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)


@pytest.mark.parametrize("kind", ["cpu", "TPU v5 lite"])
def test_a_norm_s_moments_are_summed_once(kind):
    """Two sums over the pixels each way: neither moment is summed again for the gradient."""
    norm, x = GroupNorm(6, 2, rngs=nnx.Rngs(0)), video(1, 2, 8, 8, 6).astype(jnp.bfloat16)
    run = lambda x: jax.vjp(lambda x: silu_norm(norm, x, context(1, 2)), x)[1](x)
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=1, platform=kind[:3].lower())
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)):
        traced = jax.make_jaxpr(run)(x).jaxpr

    def sums(jaxpr):
        for each in jaxpr.eqns:
            adds = each.primitive.name in ("reduce_sum", "dot_general")
            yield adds and max(operand.aval.size for operand in each.invars) >= x.size
            for inner in (getattr(param, "jaxpr", param) for param in each.params.values()):
                yield from sums(inner) if hasattr(inner, "eqns") else ()

    assert sum(sums(traced)) == 4


@pytest.mark.parametrize(
    "shapes", [((5,), (5, 7)), ((2, 5), (5, 3)), ((2, 3, 4, 5), (5, 7)), ((2, 3, 4, 5), (2, 3, 5, 2))]
)
def test_a_product_has_the_gradients_of_matmul(shapes):
    x, y = (video(*shape) for shape in shapes)
    scalar = lambda multiply: lambda x, y: jnp.sin(multiply(x, y)).sum()
    steep = lambda multiply: lambda *at: sum(jnp.square(g).sum() for g in jax.grad(scalar(multiply), (0, 1))(*at))
    for order in (scalar, steep):
        for got, wanted in zip(*(jax.grad(order(f), (0, 1))(x, y) for f in (product, jnp.matmul))):
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_gelu_is_x_times_the_share_of_normal_numbers_below_it():
    x = np.linspace(-6, 6, 200)
    share = np.array([NormalDist().cdf(value) for value in x])
    np.testing.assert_allclose(gelu(jnp.asarray(x, jnp.float32)), x * share, atol=1e-6)


def test_linear_layers_are_flax_s():
    ours, x = linear(5, 7, rngs=nnx.Rngs(0)), video(2, 3, 5)
    theirs = nnx.Linear(5, 7, rngs=nnx.Rngs(1))
    nnx.update(theirs, nnx.state(ours))
    for got, wanted in zip(*(jax.tree.leaves(nnx.grad(lambda m: jnp.sin(m(x)).sum())(m)) for m in (ours, theirs))):
        np.testing.assert_allclose(got, wanted, atol=1e-5)
