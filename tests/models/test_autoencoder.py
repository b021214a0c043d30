"""The autoencoder: its linear start, its posterior, its sizes, and the parameter counts of the published ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import norm

from vidjax.errors import InputError
from vidjax.models.autoencoder import (
    LVDM,
    PATCHES,
    STABLE_DIFFUSION,
    Autoencoder,
    AutoencoderConfig,
    Posterior,
    check_size,
)
from vidjax.models.keys import OneKey
from vidjax.models.patch_pca import from_patches, patch_pca, to_patches
from vidjax.weights.convert import parameters

SMALL = dataclasses.replace(
    PATCHES, latent_channels=3, channels=(8,), blocks=(1,), decoder_blocks=(1,), patch=(2, 2, 2), groups=4
)
TINY_LVDM = dataclasses.replace(LVDM, channels=(4, 4, 8, 8), decoder_channels=(4, 8, 8, 4), groups=4)


def videos(*shape):
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)


def filled(config):
    """A model whose every parameter is random, the zero starts too."""
    model, numbers = nnx.eval_shape(lambda: Autoencoder(config, rngs=OneKey())), np.random.default_rng(1)
    for leaf in parameters(model).values():
        leaf.set_value(jnp.asarray(numbers.normal(0, 0.2, leaf.shape), jnp.float32))
    return model


def parameter_count(config):
    model = nnx.eval_shape(lambda: Autoencoder(config, rngs=OneKey()))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_parameter_counts_of_the_published_autoencoders():
    assert parameter_count(STABLE_DIFFUSION) == 83_653_863
    assert parameter_count(LVDM) == 19_446_759  # of the released code's modules


def test_lvdm_scales_time_first_on_both_ways():
    model = nnx.eval_shape(lambda: Autoencoder(LVDM, rngs=OneKey()))
    published = [(2, 2, 2), (2, 2, 2), (1, 2, 2)]
    assert [stage.downsample.conv.strides for stage in model.encoder.down[:3]] == published
    assert [stage.upsample.conv.strides for stage in model.decoder.up[:3]] == published


def test_patches_are_blocks_and_come_back():
    x = videos(1, 4, 6, 6, 3)
    patches = to_patches(x, (2, 3, 2))
    np.testing.assert_array_equal(patches[0, 1, 1, 2], x[0, 2:4, 3:6, 4:6].ravel())
    np.testing.assert_array_equal(from_patches(patches, (2, 3, 2)), x)


def test_pca_is_the_best_linear_reconstruction():
    x = videos(4, 4, 8, 8, 3)
    patches = np.asarray(to_patches(x, (2, 2, 2)), np.float64).reshape(-1, 24)
    pca = patch_pca(x, (2, 2, 2), 5)
    singular = np.linalg.svd(patches - patches.mean(0), compute_uv=False)
    lost = jnp.square(pca.reconstruct(x) - x).sum()
    np.testing.assert_allclose(lost, np.square(singular[5:]).sum(), rtol=1e-4)
    np.testing.assert_allclose(pca.basis.T @ pca.basis, np.eye(5), atol=1e-5)
    z = pca.encode(x).reshape(-1, 5)
    np.testing.assert_allclose(z.std(0), pca.spread, rtol=1e-4)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-5)
    as_bytes = np.asarray(jnp.round((x + 1) * 127.5), np.uint8)
    np.testing.assert_allclose(patch_pca(as_bytes, (2, 2, 2), 5).mean, pca.mean, atol=1e-2)


def test_the_wrapper_starts_as_the_pca_and_then_learns():
    x = videos(2, 4, 8, 8, 3)
    pca = patch_pca(x, SMALL.strides, SMALL.latent_channels)
    model = Autoencoder(SMALL, rngs=nnx.Rngs(0))
    model.start_at(pca)
    graph, params = nnx.split(model)

    def error(params):
        model = nnx.merge(graph, params)
        z = model.encode(x).mode
        back = model.decode(z)
        return jnp.square(back - x).mean(), (z, back)

    loss = jax.jit(jax.value_and_grad(error, has_aux=True))
    (first, (z, back)), gradient = loss(params)
    np.testing.assert_allclose(z, pca.encode(x), atol=1e-5)
    np.testing.assert_allclose(back, pca.reconstruct(x), atol=1e-5)
    (better, _), _ = loss(jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient))
    assert better < first


@pytest.mark.parametrize("config", [SMALL, TINY_LVDM], ids=["patches", "lvdm"])
def test_frames_come_back_in_size(config):
    model = nnx.eval_shape(lambda: Autoencoder(config, rngs=OneKey()))
    x = jax.ShapeDtypeStruct((2, 8, 24, 16, 3), jnp.float32)
    z = nnx.eval_shape(lambda m, x: m.encode(x).mean, model, x)
    assert z.shape == (2, *(n // s for n, s in zip(x.shape[1:4], config.strides)), config.latent_channels)
    assert nnx.eval_shape(lambda m, z: m.decode(z), model, z).shape == x.shape


def test_a_kernel_of_two_numbers_sees_one_frame():
    config = dataclasses.replace(
        STABLE_DIFFUSION, channels=(2, 4), blocks=(0, 1), decoder_blocks=(0, 1), steps=((1, 2, 2),), groups=2
    )
    model = filled(config)
    through = jax.jit(lambda x: model.decode(model.encode(x).mode))
    x = videos(1, 3, 6, 10, 3)
    np.testing.assert_allclose(through(x)[0], through(x.swapaxes(0, 1))[:, 0], atol=1e-4)


def test_kl_and_samples_of_the_posterior():
    mean, logvar = videos(2, 1, 2, 2, 1), videos(2, 2, 1, 2, 1).reshape(2, 1, 2, 2, 1)
    q = Posterior(mean, logvar)
    x = np.linspace(-12, 12, 20_001)  # of each element: the integral of q log(q / p)
    element = [
        np.trapezoid(norm.pdf(x, m, s) * (norm.logpdf(x, m, s) - norm.logpdf(x)), x)
        for m, s in zip(np.ravel(mean), np.ravel(jnp.exp(0.5 * logvar)))
    ]
    np.testing.assert_allclose(q.kl(), np.reshape(element, (2, -1)).sum(1), rtol=1e-4)
    samples = jax.vmap(q.sample)(jax.random.normal(jax.random.key(0), (20_000, *mean.shape)))
    np.testing.assert_allclose(samples.mean(0), mean, atol=0.05)
    np.testing.assert_allclose(samples.var(0), jnp.exp(logvar), rtol=0.1)
    np.testing.assert_array_equal(q.mode, mean)


def test_sizes_that_do_not_divide_name_those_that_do():
    check_size((4, 64, 96), (2, 8, 8))
    with pytest.raises(InputError, match=r"5 frames of 60x64.*take 4 frames of 56x64 or 6 of 64x64"):
        check_size((5, 60, 64), (2, 8, 8))
    model = nnx.eval_shape(lambda: Autoencoder(SMALL, rngs=OneKey()))
    with pytest.raises(InputError, match="do not divide"):
        nnx.eval_shape(lambda m, x: m.encode(x).mean, model, jax.ShapeDtypeStruct((1, 3, 4, 4, 3), jnp.float32))


def test_a_configuration_whose_levels_disagree_is_refused():
    with pytest.raises(InputError, match=r"blocks=\(1, 1\) has 2 levels, channels has 1"):
        AutoencoderConfig(blocks=(1, 1))
    with pytest.raises(InputError, match="do not undo"):
        dataclasses.replace(LVDM, decoder_steps=((1, 2, 2),) * 3)
    with pytest.raises(InputError, match="2 levels need 1"):
        AutoencoderConfig(channels=(8, 8), blocks=(1, 1), decoder_blocks=(1, 1))
