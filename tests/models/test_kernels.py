"""A program's kernels follow its mesh and what is asked of them; derivatives are the same in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vidjax.models import kernels
from vidjax.models.autoencoder import Autoencoder, AutoencoderConfig
from vidjax.models.kernels.moments import mean_of_groups, mean_over, moments
from vidjax.models.layers import linear
from vidjax.models.unet import UNet, UNetConfig
from vidjax.runtime.platforms import platform

KINDS = {"cpu": "cpu", "gpu": "NVIDIA H100 80GB HBM3", "tpu": "TPU v5 lite"}


def on(platform):
    """The mesh of one device, which need not be here."""
    device = jax.sharding.AbstractDevice(device_kind=KINDS[platform], num_cores=None, platform=platform)
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device))


def test_the_platform_is_that_of_the_mesh_also_inside_functions_that_were_traced_before():
    seen = []
    traced = jax.jit(lambda x: (seen.append(platform()), x)[1])
    for name in ("cpu", "tpu", "gpu"):
        with on(name):
            traced.trace(jnp.zeros(1))
    assert seen == ["cpu", "tpu", "gpu"]
    assert platform() == jax.default_backend()
    with jax.default_device(jax.devices("cpu")[0]):
        assert platform() == "cpu"


def networks():
    small = dict(in_channels=3, out_channels=3, channels=(16,), blocks_per_level=0, attention_levels=True)
    block = (("attn1", "first_and_previous"), ("attn2", "tokens"), ("ff", "ff"), ("attn_temp", "relative_time"))
    config = UNetConfig(**small, heads=2, groups=4, block=block, tokens_dim=6, norm_over="clip", after_resnet="convs")
    config_ae = AutoencoderConfig(patch=(1, 2, 2), latent_channels=4, channels=(8,), blocks=(1,), groups=4)
    tokens = jax.random.normal(jax.random.key(3), (1, 5, 6))
    yield (
        "U-Net",
        UNet(config, rngs=nnx.Rngs(0)),
        lambda net, x: net(x, jnp.full(x.shape[:2], 300.0), tokens, remat="full"),
    )
    yield "autoencoder", Autoencoder(config_ae, rngs=nnx.Rngs(0)), lambda net, x: net.decode(net.encode(x).mode)


@pytest.mark.parametrize("name, net, call", networks(), ids=lambda value: value if isinstance(value, str) else "")
def test_forward_mode_agrees_with_the_gradients_written_by_hand(name, net, call):
    """v' (J u) by jax.jvp, (v' J) u by the reverse mode of CPUs: for the input and for all parameters at once."""
    graphdef, state = nnx.split(net)
    draw = lambda i, like: jax.random.normal(jax.random.key(i), like.shape)
    state = jax.tree.map(lambda p: p + 0.1 * draw(7, p), state)  # nothing stays at zero
    x = jax.random.normal(jax.random.key(0), (1, 4, 8, 8, 3))
    u = (jax.tree.map(lambda p: 0.01 * draw(8, p), state), draw(1, x))
    v = draw(2, x)

    def run(state, x):
        return call(nnx.merge(graphdef, state), x)

    with kernels.forward_mode():
        forward = jax.jit(lambda: jnp.vdot(v, jax.jvp(run, (state, x), u)[1]))()
    slopes = jax.jit(jax.grad(lambda *a: jnp.vdot(v, run(*a)), (0, 1)))(state, x)
    backward = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(u)))
    np.testing.assert_allclose(forward, backward, rtol=1e-4)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_small_networks_have_forward_derivatives_on_accelerators_unasked(platform):
    for _, net, call in networks():
        graphdef, state = nnx.split(net)
        x = jnp.zeros((1, 4, 8, 8, 3))
        run = lambda x, graphdef=graphdef, state=state, call=call: call(nnx.merge(graphdef, state), x)
        with on(platform):
            _, slope = jax.eval_shape(lambda x, run=run: jax.jvp(run, (x,), (x,)), x)
        assert slope.shape == x.shape


def test_one_pass_over_bfloat16_finds_the_variance_that_two_find():
    """With a mean twenty times the deviation, against float64."""
    x = (jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 12)) + 20).astype(jnp.bfloat16)
    mean, pool = (lambda y: mean_over(y, (2, 3))), (lambda y: mean_of_groups(y, 3))
    with on("tpu"):
        made = jax.jit(lambda x: moments(x, mean, pool), backend="cpu").trace(x).jaxpr
    found = jax.core.eval_jaxpr(made.jaxpr, made.consts, x)
    groups = np.asarray(x, np.float64).reshape(2, 4, 8, 8, 3, 4)
    for got, wanted in zip(found, (groups.mean((2, 3, 5)), groups.var((2, 3, 5)))):
        np.testing.assert_allclose(got.reshape(2, 4, 3, 4), np.broadcast_to(wanted[..., None], (2, 4, 3, 4)), rtol=2e-3)


def test_what_a_linear_layer_asks_of_its_product_is_done():
    layer = linear(4, 3, rngs=nnx.Rngs(0))
    layer.preferred_element_type = jnp.float32
    assert layer(jnp.ones((2, 4), jnp.bfloat16)).dtype == jnp.float32
