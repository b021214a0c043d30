"""FLOPs against hand counts, and against those that XLA counts for itself."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from vidjax.models import kernels
from vidjax.models.kernels.attention import attend
from vidjax.models.kernels.convolution import convolve
from vidjax.models.unet import UNet, UNetConfig
from vidjax.profiling.flops import count_flops, count_with_gradient


def ones(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_matrix_product_a_batch_of_them_and_a_scan():
    assert count_flops(lambda a, b: a @ b, ones(3, 5), ones(5, 7)) == 2 * 3 * 5 * 7
    assert count_flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), ones(4, 3, 5), ones(4, 5, 7)) == 4 * 2 * 3 * 5 * 7
    turned = lambda a: jax.lax.scan(lambda x, _: (x @ x, None), a, length=6)[0]
    assert count_flops(turned, ones(3, 3)) == 6 * 2 * 27


def test_a_convolution_counts_its_taps():
    assert count_flops(lambda x, k: convolve(x, k), ones(2, 8, 6, 5), ones(3, 3, 5, 7)) == 2 * (2 * 8 * 6 * 7) * (9 * 5)


def test_the_gradient_of_a_strided_convolution_costs_what_the_convolution_does():
    forward = lambda x, k: convolve(x, k, strides=2, implementation="plain")
    loss = lambda x, k: jnp.square(forward(x, k)).sum()
    args = ones(2, 8, 8, 5), ones(3, 3, 5, 7)
    once = count_flops(forward, *args)
    assert count_flops(jax.grad(loss, (0, 1)), *args) == pytest.approx(3 * once, rel=0.2)  # borders apart


def test_a_gradient_costs_twice_its_forward_pass_more():
    loss = lambda w, x: jnp.sum(jnp.tanh(x @ w))
    forward = count_flops(loss, ones(5, 7), ones(3, 5))
    assert count_flops(jax.grad(loss, (0, 1)), ones(5, 7), ones(3, 5)) == 3 * forward


def test_a_loss_counts_with_its_gradient_what_jax_makes_of_the_two():
    """Through a loop, a condition and a checkpoint; of what is frozen, or held constant, forward alone."""

    def loss(trained, frozen, x):
        a, b, c = trained
        x = jax.checkpoint(lambda x: jnp.tanh(x @ frozen))(x) @ a
        x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ b) @ w, None), x, jnp.stack([frozen] * 3))[0]
        x = jax.lax.cond(x.sum() > 0, lambda x: x @ c, lambda x: x, x)
        return jnp.sum(x * jax.lax.stop_gradient(jnp.square(x @ a)))

    args = [ones(5, 5)] * 3, ones(5, 5), ones(7, 5)
    assert count_with_gradient(loss, *args) == count_flops(jax.grad(loss), *args)


@pytest.mark.parametrize("tokens", [16, 1024])  # long ones are worked off in chunks
def test_attention_is_two_products_however_it_is_computed(tokens):
    q = ones(2, tokens, 4 * 8)
    assert count_flops(lambda *a: attend(*a, 8), q, q, q) == 2 * 2 * (2 * 4 * tokens**2 * 8)


def test_of_a_u_net_xla_counts_as_many():
    config = UNetConfig(channels=(32, 64), blocks_per_level=1, attention_levels=True, heads=4, tokens_dim=16, groups=8)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: UNet(config, rngs=nnx.Rngs(0))))
    call = lambda state, *args: nnx.merge(graphdef, state)(*args)
    args = state, ones(2, 3, 16, 16, 4), ones(2, 3), ones(2, 7, 16)
    with kernels.textbook():
        theirs = jax.jit(call).lower(*args).cost_analysis()["flops"]
    assert count_flops(call, *args) == pytest.approx(theirs, rel=0.05)  # theirs count norms and activations too
