"""A flow autoencoder's loss: what vanishes for predictors that move with the picture."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tiny_flow import random_model

from vidjax.diffusion.draws import draws_at
from vidjax.models.region_motion import Regions
from vidjax.models.warping import identity_grid
from vidjax.training.flow import equivariance, flow_autoencoder, random_bends


def draws(count=3):
    return draws_at(jax.random.key(0), jnp.int32(0), count)


def regions(seed=0, count=3):
    rng = np.random.default_rng(seed)
    axes = jnp.asarray(rng.standard_normal((count, 4, 2, 2)), jnp.float32)
    return Regions(jnp.asarray(rng.uniform(-0.7, 0.7, (count, 4, 2)), jnp.float32), axes, axes @ axes.mT)


def test_equivariant_regions_have_no_loss():
    """Regions of a bent picture that lie where the bend takes them from, with axes that it turns; any sign of both."""
    bend, bent = random_bends(draws(), 0.05, 0.005, 5), regions()
    center = bend(bent.center)
    axes = -bend.jacobian(bent.center) @ bent.affine
    shift, turned = equivariance(bend, Regions(center, axes, axes @ axes.mT), bent)
    assert shift < 1e-6 and turned < 1e-4
    shift, turned = equivariance(bend, bent, bent)
    assert shift > 1e-3 and turned > 1e-3


def test_a_bend_of_a_picture_shows_what_is_where_it_goes():
    """A ramp of places, bent, is the bend itself."""
    bend = random_bends(draws(1), 0.05, 0.005, 5)
    places = identity_grid(32, 32)[None]
    inner, flat = (slice(None), slice(8, -8), slice(8, -8)), places.reshape(1, -1, 2)
    np.testing.assert_allclose(bend.frames(places)[inner], bend(flat).reshape(places.shape)[inner], atol=1e-5)
    at, step = jnp.array([[[0.1, 0.2]]]), 1e-2 * jnp.eye(2)[None]
    ahead = (bend(at + step) - bend(at - step)) / 2e-2
    np.testing.assert_allclose(bend.jacobian(at)[0, 0], ahead[0].T, atol=1e-3)


def test_the_loss_is_of_two_frames_and_its_gradient_is_finite():
    """Of clips whose frames all differ, source and driving are never the same one; also of a flat picture, whose
    regions are round, without direction."""
    graphdef, state = nnx.split(random_model())
    shades = jnp.array([0, 90, 180], jnp.uint8)
    video = jnp.broadcast_to(shades[None, :, None, None, None], (3, 3, 8, 8, 3)).at[0, :, 2:5, 2:5].add(70)

    def loss(state, step):
        at = draws_at(jax.random.key(1), step, 3)
        return flow_autoencoder(nnx.merge(graphdef, state), {"video": video}, at, scales=(1, 2))

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for step in range(4):
        (value, metrics), gradient = run(state, jnp.int32(step))
        assert metrics["still"] >= 90 / 127.5 - 1e-5
        assert jnp.isfinite(value) and all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
