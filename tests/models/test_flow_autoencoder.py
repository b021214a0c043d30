"""Regions, their motion, and the codec of flow and occlusion."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_flow import random_model

from vidjax.data.transforms import to_uint8
from vidjax.errors import InputError
from vidjax.models.flow_autoencoder import FlowAutoencoder, FlowCodec, FlowConfig, SourceEmbedder
from vidjax.models.keys import OneKey
from vidjax.models.parameters import abstract_parameters
from vidjax.models.region_motion import Regions, inverse, motions, principal_axes, upright
from vidjax.models.warping import identity_grid


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def video():
    return jnp.asarray(np.random.default_rng(1).integers(0, 256, (2, 3, 16, 16, 3)), jnp.uint8)


def test_the_paper_s_size():
    """Parameters of the released networks, part by part."""
    made = nnx.eval_shape(lambda: FlowAutoencoder(FlowConfig(), rngs=OneKey()))
    sizes = {path: math.prod(value.shape) for path, value in abstract_parameters(made).items()}
    count = lambda start: sum(size for path, size in sizes.items() if path.startswith(start))
    assert count("generator.") == 45_575_391 and count("generator.flow.") == 37_730_268
    assert (count("regions."), count("background.")) == (14_146_728, 6_282_438)
    assert count("") == 66_004_557


def test_principal_axes():
    """They are the covariance's square root, orthogonal, the longer first; and turn with it."""
    rng = np.random.default_rng(0)
    m = jnp.asarray(rng.standard_normal((50, 2, 2)), jnp.float32)
    covariance = m @ m.mT
    axes = principal_axes(covariance)
    np.testing.assert_allclose(axes @ axes.mT, covariance, atol=1e-5)
    gram = axes.mT @ axes
    np.testing.assert_allclose(gram[:, 0, 1], 0, atol=1e-4)
    assert (gram[:, 0, 0] >= gram[:, 1, 1]).all()
    angle = 0.3
    turn = jnp.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = principal_axes(turn @ covariance @ turn.T)
    found = upright(turned @ inverse(axes))
    np.testing.assert_allclose(jnp.abs(found), jnp.abs(jnp.broadcast_to(turn, found.shape)), atol=1e-3)


def test_gradients_are_finite_where_axes_have_no_direction():
    cases = jnp.stack([jnp.eye(2) * 0.1, jnp.diag(jnp.array([0.2, 0.1])), jnp.full((2, 2), 0.1)])
    assert jnp.isfinite(jax.jit(jax.grad(lambda c: jnp.abs(principal_axes(c) - jnp.eye(2)).sum()))(cases)).all()
    np.testing.assert_allclose(jnp.abs(principal_axes(jnp.eye(2))), jnp.eye(2), atol=1e-6)


def test_regions_that_do_not_move_move_nothing(model):
    """And those that all move by one step, with the background, move every pixel by it."""
    axes = jnp.broadcast_to(jnp.array([[0.3, 0.1], [0.0, 0.2]]), (1, 3, 2, 2))
    center = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 3, 2)), jnp.float32)
    regions = Regions(center, axes, axes @ axes.mT)
    places, still = identity_grid(4, 4), jnp.eye(2, 3)[None]
    got = motions(places, regions, regions, still)
    np.testing.assert_allclose(got, jnp.broadcast_to(places, got.shape), atol=1e-5)
    step = jnp.array([0.25, -0.5])
    behind = still.at[..., 2].set(-step)
    moved = Regions(center + step, axes, regions.covariance)
    got = motions(places, regions, moved, behind)
    np.testing.assert_allclose(got, jnp.broadcast_to(places - step, got.shape), atol=1e-5)


def test_all_to_be_seen_is_the_first_frame_moved(model, video):
    """Flow 0 and occlusion 1: the first frame, whatever the networks paint, through statistics of any kind; moved by a
    whole number of pixels where it is so. Latents without a picture say what is missing."""
    codec = FlowCodec(model, shift=(0.1, 0.2, -0.9), scale=(3.0, 4.0, 5.0))
    step = jnp.zeros(3).at[1].set(4.0 / 16)  # in [-1, 1]: two of sixteen pixels in all frames' x
    flow = jnp.zeros((2, 3, 8, 8, 3)).at[..., 2].set(1.0).at[..., 0].add(step[None, :, None, None])
    z = jnp.array(codec.scale) * (flow + jnp.array(codec.shift))
    decoded = jax.jit(lambda z, first: to_uint8(codec.decode(codec.beside(z, first))))(z, video[:, 0])
    np.testing.assert_array_equal(decoded[:, ::2], jnp.broadcast_to(video[:, :1], decoded[:, ::2].shape))
    np.testing.assert_array_equal(decoded[:, 1, :, :-2], video[:, 0, :, 2:])
    with pytest.raises(InputError, match="give it one, --image"):
        codec.decode(z)


def test_latents_and_features_depend_on_what_they_should(model, video):
    """A frame's flow on that frame and the first; the features on the first alone."""
    codec, embedder = FlowCodec(model), SourceEmbedder()
    latents = jax.jit(codec.latents)
    z, changed = latents(video), latents(video.at[:, 2].set(255 - video[:, 2]))
    assert z.shape == (2, 3, 8, 8, 3) and jnp.isfinite(z).all()
    np.testing.assert_allclose(changed[:, :2], z[:, :2], atol=1e-5)
    assert jnp.abs(changed[:, 2] - z[:, 2]).max() > 1e-4
    entry = jax.eval_shape(lambda frame: embedder.entry(codec, frame), video[:, 0])
    assert entry["features"].shape == (2, 8, 8, model.feature_channels)


def test_sizes_that_do_not_halve_are_refused(model):
    with pytest.raises(InputError, match="multiples of 4"):
        model.find(jnp.zeros((1, 16, 18, 3)))
