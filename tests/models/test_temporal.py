"""Layers over time: relative positions by the sum, the identity at the start, where arrays are placed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from as_tpu import on_tpu
from flax import nnx

from vidjax.models.attention import Attention
from vidjax.models.kernels.attention import attend, short, splash
from vidjax.models.layers import Context, ResBlock
from vidjax.models.temporal import Blend, FramePositions, RelativeAttention, TemporalConvs


def test_relative_attention_is_the_sum_of_shaw_et_al():
    """Equations 3 and 4 of Shaw et al. (2018), element by element, distances clipped to the reach."""
    layer = RelativeAttention(4, 2, rngs=nnx.Rngs(0))
    q, k, v = (np.asarray(jax.random.normal(jax.random.key(i), (5, 4))) for i in range(3))
    rel_k, rel_v = np.asarray(layer.k[...]), np.asarray(layer.v[...])
    expected = np.zeros((5, 4))
    for i in range(5):
        near = np.clip(np.arange(5) - i, -2, 2) + 2
        e = np.array([q[i] @ (k[j] + rel_k[near[j]]) for j in range(5)]) / 2
        a = np.exp(e) / np.exp(e).sum()
        expected[i] = sum(a[j] * (v[j] + rel_v[near[j]]) for j in range(5))
    args = [jnp.asarray(a)[None, None] for a in (q, k, v)]
    np.testing.assert_allclose(layer(*args)[0, 0], expected, atol=1e-5)
    np.testing.assert_allclose(on_tpu(layer, *args)[0][0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_relative_attention_with_empty_tables_is_attention(transposed):
    layer = RelativeAttention(4, 2, transposed, rngs=nnx.Rngs(0))
    layer.k[...], layer.v[...] = jnp.zeros((5, 4)), jnp.zeros((5, 4))
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 3, 6, 8)) for i in range(3))
    np.testing.assert_allclose(layer(q, k, v)[0], attend(q[0], k[0], v[0], 4), atol=1e-5)


@pytest.mark.parametrize("t, transposed, pairs", [(6, False, True), (6, True, False), (9, False, False)])
def test_forms_for_tpus_are_equal(t, transposed, pairs):
    """Few frames by pairs; else, and with the slip of LVDM, as attention each of whose heads fills half of a row."""
    layer = RelativeAttention(4, 2, transposed, rngs=nnx.Rngs(0))
    args = [jax.random.normal(jax.random.key(i), (2, 6, t, 8)) for i in range(3)]
    graphdef, state = nnx.split(layer)
    loss = lambda state, *a: jnp.sin(nnx.merge(graphdef, state)(*a)).sum()
    run = lambda *a: jax.value_and_grad(loss, (0, 1, 2, 3))(state, *a)
    got, text = on_tpu(run, *args)
    assert (f"[12,{t},2,64]" in text) != pairs
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, jax.jit(run)(*args))


@pytest.mark.parametrize("kernel", ["short", "splash"])
def test_relative_attention_by_a_kernel_of_tpus(kernel, monkeypatch):
    """Sixteen frames, whose relative keys and values are features of heads of 64, as a kernel takes them."""
    layer = RelativeAttention(32, 5, rngs=nnx.Rngs(0))
    q, k, v = (jax.random.normal(jax.random.key(i), (16, 16, 2, 32)) for i in range(3))
    graphdef, state = nnx.split(layer)
    loss = lambda form: lambda state, *a: jnp.sin(getattr(nnx.merge(graphdef, state), form)(*a)).sum()
    expected = jax.jit(jax.value_and_grad(loss("_by_sequences"), (0, 1, 2, 3)))(state, q, k, v)
    interpreted = lambda *a: {"short": short, "splash": splash}[kernel](*a, interpret=True)
    monkeypatch.setattr("vidjax.models.temporal.attend", interpreted)
    got = jax.jit(jax.value_and_grad(loss("_by_features"), (0, 1, 2, 3)))(state, q, k, v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, expected)


@pytest.mark.parametrize("over", ["frame", "clip"])
def test_a_residual_block_of_a_tpu_has_frames_in_the_batch(over):
    """Its values and gradients are those of the form that keeps frames an axis, each clip with moments of its own."""
    layer = ResBlock(4, 6, 5, norm_over=over, scale_shift=True, groups=2, rngs=nnx.Rngs(0))
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
    graphdef, state = nnx.split(layer)
    state = jax.tree.map(lambda p: p + 0.1 * draw(3, *p.shape), state)  # the last convolution starts at zero
    x, emb = draw(0, 2, 3, 4, 4, 4) * jnp.array([1.0, 5.0])[:, None, None, None, None], draw(1, 2, 3, 5)
    loss = lambda state, x, emb: jnp.sin(nnx.merge(graphdef, state)(x, Context(emb))).sum()
    run = lambda *a: jax.value_and_grad(loss, (0, 1, 2))(state, *a)
    got, text = on_tpu(run, x, emb)
    assert "f32[6,1,1,4]" in text  # moments of six frames
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, jax.jit(run)(x, emb))


def context(t):
    return Context(jax.random.normal(jax.random.key(1), (2, t, 6)))


def temporal_layers():
    rngs = nnx.Rngs(0)
    return {
        "attention": (Attention(8, 2, "time", relative=RelativeAttention(4, 2, rngs=rngs), rngs=rngs), (2, 5, 6, 8)),
        "positions": (Attention(8, 2, "time", positions=True, rngs=rngs), (2, 5, 6, 8)),
        "convs": (TemporalConvs(8, 2, rngs=rngs), (2, 5, 2, 3, 8)),
        "resblock": (ResBlock(8, 8, 6, (3, 1, 1), "clip", groups=2, rngs=rngs), (2, 5, 2, 3, 8)),
        "frame_positions": (FramePositions(8, rngs=rngs), (2, 5, 6, 8)),
    }


def filled(layer):
    graph, params = nnx.split(layer)
    random = np.random.default_rng(0)
    return nnx.merge(graph, jax.tree.map(lambda a: jnp.asarray(0.5 * random.standard_normal(a.shape, "f")), params))


@pytest.mark.parametrize("name", temporal_layers())
def test_stills_see_only_themselves(name):
    layer, shape = temporal_layers()[name]
    layer, x = filled(layer), jax.random.normal(jax.random.key(0), shape)
    emb = context(5).emb

    @jax.jit
    def routes(x):
        parts = [layer(x[:, a:b], Context(emb[:, a:b])) for a, b in ((0, 3), (3, 4), (4, 5))]
        return layer(x, Context(emb, images=2)), jnp.concatenate(parts, 1)

    np.testing.assert_allclose(*routes(x), atol=1e-5)


def test_blend():
    layer = Blend(lambda x, ctx: -x, mix=0.0)
    layer.mix_factor[...] = jnp.array([np.log(3.0)])  # 3/4 of x, 1/4 of -x
    np.testing.assert_allclose(layer(jnp.ones((1, 2, 3, 4)), context(2)), 0.5, atol=1e-6)
