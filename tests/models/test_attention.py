"""Every implementation of attention is the textbook one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx

from vidjax.models import kernels
from vidjax.models.attention import Attention, sinusoid_interleaved
from vidjax.models.kernels import short_attention
from vidjax.models.kernels.attention import ATTENTION, attend, choose_attention, join_heads, part_heads
from vidjax.models.layers import Context
from vidjax.models.unet import REMAT


def qkv(n, m, d=8, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (2, s, 2 * d), dtype) for key, s in zip(keys, (n, m, m))]


def test_plain_is_the_definition():
    q, k, v = qkv(3, 5)
    heads = [np.asarray(a).reshape(2, -1, 2, 8) for a in (q, k, v)]
    w = np.exp(np.einsum("bnkd,bmkd->bknm", *heads[:2]) / np.sqrt(8))
    expected = np.einsum("bknm,bmkd->bnkd", w / w.sum(-1, keepdims=True), heads[2]).reshape(2, 3, 16)
    np.testing.assert_allclose(attend(q, k, v, 8), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [None, 200])
def test_chunked_equals_plain_forward_and_backward(rows):
    q, k, v = qkv(200, 40)
    mask = None if rows is None else jax.random.bernoulli(jax.random.key(1), 0.7, (2, 1, rows, 40))

    def route(name):
        f = lambda *a: jnp.sin(ATTENTION[name](*a, 8, mask)).sum()
        return jax.jit(jax.value_and_grad(f, (0, 1, 2)))(q, k, v)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), route("plain"), route("chunked"))


@pytest.mark.parametrize(
    "n, m, d, masked", [(128, 256, 16, False), (130, 77, 40, False), (140, 20, 128, True), (90, 90, 40, False)]
)
def test_the_tpu_kernel_equals_plain_forward_and_backward(n, m, d, masked):
    """Odd numbers of queries and keys, any width, masks of keys, one of which leaves none, two sequences in one."""
    q, k, v = qkv(n, m, d)
    mask = (jnp.arange(m) % 3 < jnp.array([[2], [0]]))[:, None, None] if masked else None

    def route(name, **more):
        f = lambda *a: jnp.sin(ATTENTION[name](*a, d, mask, **more)).sum()
        return jax.jit(jax.value_and_grad(f, (0, 1, 2)))(q, k, v)

    got, wanted = route("splash", interpret=True), route("plain")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), got, wanted)


@pytest.mark.parametrize("n, d", [(16, 64), (24, 8), (144, 192), (480, 40)])
def test_the_tpu_kernel_of_short_sequences_equals_plain_forward_and_backward(n, d):
    """Two sequences in one, whole ones by themselves, and one of more queries than are taken at a time."""
    q, k, v = qkv(n, n, d)

    def route(name, **more):
        f = lambda *a: jnp.sin(ATTENTION[name](*a, d, **more)).sum()
        return jax.jit(jax.value_and_grad(f, (0, 1, 2)))(q, k, v)

    got, wanted = route("short", interpret=True), route("plain")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), got, wanted)


@pytest.mark.parametrize("n, m, masked", [(6, 8, False), (6, 77, False), (5, 7, False), (5, 7, True), (6, 8, True)])
def test_what_cudnn_is_asked_for_is_plain_attention(monkeypatch, n, m, masked):
    """Its lengths in place of masks, and its even numbers, with JAX's own form of the same function."""
    attention = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *a, implementation, **more: attention(*a, **more, implementation="xla")
    )
    q, k, v = qkv(n, m)
    mask = (jnp.arange(m) % 3 < jnp.array([[2], [0]]))[:, None, None] if masked else None

    def route(name):
        f = lambda *a: jnp.sin(ATTENTION[name](*a, 8, mask)).sum()
        return jax.jit(jax.value_and_grad(f, (0, 1, 2)))(q, k, v)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), route("cudnn"), route("plain"))


@pytest.mark.parametrize("turned", [False, True])
def test_heads_are_joined_as_they_were_parted(turned):
    """Values and gradients in bf16, where the gradient's product with the identity is exact."""
    x, y = (jax.random.normal(jax.random.key(i), (2, 6, 3 * 8), jnp.bfloat16) for i in range(2))
    plain = rearrange(x, "b (r n) (k d) -> (b r) n k d", r=2, k=3)

    def passed(x):
        heads = part_heads(x, 3, turned)
        return join_heads(heads * jnp.arange(1, 4).astype(x.dtype)[:, None, None], 2, turned)

    out, back = jax.vjp(passed, x)
    np.testing.assert_array_equal(out, (plain * jnp.arange(1, 4)[:, None]).astype(x.dtype).reshape(4, 3, 24))
    slope = (rearrange(y, "b n (k d) -> b n k d", k=3) * jnp.arange(1, 4)[:, None]).astype(x.dtype)
    np.testing.assert_array_equal(back(y.reshape(4, 3, 24))[0], slope.reshape(x.shape))


def test_masked_tokens_do_not_exist():
    q, k, v = qkv(3, 5)
    mask = (jnp.arange(5) < 3)[None, None, None]
    np.testing.assert_allclose(attend(q, k, v, 8, mask), attend(q, k[:, :3], v[:, :3], 8), rtol=1e-5, atol=1e-6)
    assert np.isfinite(attend(q, k, v, 8, mask & False)).all()  # an empty prompt


def on(platform, kind):
    """The mesh of one device, which need not be here."""
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device))


def test_the_choice_is_the_mesh_s_platform_s_and_falls_back_where_flash_cannot_go():
    half = dict(dtype=jnp.bfloat16)

    def named(n, m, platform, mask=None, d=8, dtype=jnp.float32, b=2):
        q, k = (jax.ShapeDtypeStruct((b, size, 2 * d), dtype) for size in (n, m))
        chosen = []
        with on(*platform):
            jax.eval_shape(lambda q, k: chosen.append(choose_attention(q, k, d, mask)), q, k)
        return chosen[0]

    hopper, ampere, volta = (("gpu", f"NVIDIA {name}") for name in ("H100 80GB HBM3", "A100-SXM4-80GB", "V100-SXM2"))
    tpu, cpu = ("tpu", "TPU v5 lite"), ("cpu", "cpu")
    assert named(4096, 8192, hopper, **half) == named(4096, 8192, ampere, **half) == "cudnn"
    assert named(4096, 8192, hopper, d=160, **half) == "cudnn" and named(4096, 8192, ampere, d=160, **half) == "chunked"
    assert named(4096, 8192, volta, **half) == "chunked"
    assert named(4096, 8192, hopper) == "chunked"  # fp32
    assert named(4096, 8192, hopper, d=12, **half) == "chunked"
    assert named(1024, 1024, hopper) == "plain"
    assert named(1024, 77, hopper, jnp.ones((2, 1, 1, 77), bool), **half) == "cudnn"
    assert named(1024, 77, hopper, jnp.ones((2, 1, 1024, 77), bool), **half) == "plain"
    assert named(1024, 1024, tpu) == named(5000, 77, tpu) == named(1024, 1024, tpu, d=160) == "splash"
    assert named(256, 256, tpu, d=192, **half) == named(16, 16, tpu, d=256, b=8, **half) == "short"
    assert named(24, 24, tpu, b=64, **half) == named(14, 14, tpu, b=64, **half) == "short"
    assert named(1024, 1024, tpu, d=40, **half) == named(960, 960, tpu, d=32, **half) == "short"
    assert named(1040, 1040, tpu, d=40, **half) == named(1024, 1024, tpu, d=176, **half) == "splash"
    assert named(25, 25, tpu, b=64, **half) == named(272, 272, tpu, **half) == "splash"  # tiles cut, or one by one
    assert short_attention.fits(8, 128, 1280, 32) and not short_attention.fits(8, 128, 1280, 16)  # 80 heads
    assert named(24, 24, tpu, b=64) == "splash" and named(24, 24, tpu, b=2) == named(24, 77, tpu, b=64) == "plain"
    assert named(4096, 8192, cpu) == "chunked"
    assert named(1024, 1024, cpu) == named(64, 64, cpu) == "plain"
    with kernels.forward_mode():
        assert named(4096, 8192, tpu, **half) == named(4096, 8192, hopper, **half) == "chunked"
    with kernels.textbook():
        assert named(4096, 8192, tpu) == named(4096, 8192, cpu) == "plain"


@pytest.mark.parametrize("n, more", [(128, 0), (1152, 2 * 1152 * (256 + 2))])
def test_what_flash_attention_puts_out_may_be_kept(n, more):
    """Of long sequences the result and a number for each query and head, beside what goes in: the kernel need not run
    again. That of short ones wants for its gradient what goes in."""
    shape = jax.ShapeDtypeStruct((2, n, 256), jnp.bfloat16)

    def kept(remat):
        run = jax.checkpoint(lambda *a: attend(*a, 128), policy=REMAT[remat])
        with on("tpu", "TPU v5 lite"):
            pull = jax.eval_shape(lambda *a: jax.vjp(run, *a)[1], *[shape] * 3)
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    assert kept("attention") - kept("full") == more


def test_interleaved_positions():
    """Vaswani et al. (2017), section 3.5."""
    position, i = np.mgrid[:6, :4]
    angle = position / 10_000 ** (2 * i / 8)
    expected = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(6, 8)
    np.testing.assert_allclose(sinusoid_interleaved(6, 8), expected, atol=1e-5)


def context(t, tokens=None, **more):
    return Context(jnp.zeros((2, t, 1)), tokens, **more)


def test_sparse_keys_are_attention_over_a_longer_frame():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 8))
    sparse, alone = (Attention(8, 2, keys, rngs=nnx.Rngs(0)) for keys in ("first_and_previous", "frame"))
    apply = jax.jit(lambda x: sparse(x, context(3)))
    out = apply(x)
    # Frame 0 sees itself twice, which is seeing itself once.
    np.testing.assert_allclose(out[:, 0], jax.jit(lambda x: alone(x, context(3)))(x)[:, 0], atol=1e-6)
    # Frame 2 depends on frames 0, 1 and itself; frame 1 not on frame 2.
    np.testing.assert_array_equal(apply(x.at[:, 2].set(0.0))[:, :2], out[:, :2])
    assert not np.allclose(apply(x.at[:, 1].set(0.0))[:, 2], out[:, 2])


def test_tokens_reach_every_frame_alike():
    layer = Attention(8, 2, "tokens", kv_dim=6, rngs=nnx.Rngs(0))
    tokens = jax.random.normal(jax.random.key(0), (2, 5, 6))
    x = jax.random.normal(jax.random.key(1), (2, 3, 4, 8))
    mask = jnp.arange(5)[None] < jnp.array([[2], [2]])

    @jax.jit
    def routes(x, tokens):
        whole = layer(x, context(3, tokens))
        one_by_one = jnp.concatenate([layer(x[:, i : i + 1], context(1, tokens)) for i in range(3)], 1)
        masked, short = layer(x, context(3, tokens, token_mask=mask)), layer(x, context(3, tokens[:, :2]))
        return whole, one_by_one, masked, short

    whole, one_by_one, masked, short = routes(x, tokens)
    np.testing.assert_allclose(whole, one_by_one, atol=1e-6)
    np.testing.assert_allclose(masked, short, atol=1e-6)
