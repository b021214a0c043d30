"""Grids: the identity returns the picture, a shift shifts it, at every scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.models.warping import identity_grid, resize_grid, sample_grid, shrink, warp


@pytest.fixture(scope="module")
def pictures():
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 12, 3)), jnp.float32)


@pytest.mark.parametrize("size", [(8, 12), (4, 6), (2, 3)])
def test_the_identity_of_any_size_returns_the_picture(pictures, size):
    grid = jnp.broadcast_to(identity_grid(*size), (2, *size, 2))
    np.testing.assert_allclose(warp(pictures, grid), pictures, atol=1e-5)


def test_the_identity_of_the_released_code_enlarges(pictures):
    """Its corners mean centres and are read as edges: pixel i is taken from n i / (n - 1) - 1/2."""
    ramp = jnp.broadcast_to(jnp.arange(12.0)[None, None, :, None], (1, 8, 12, 1))
    grid = identity_grid(8, 12, corners=True)[None]
    got = warp(ramp, grid, corners=True)[0, 4, 1:-1, 0]
    np.testing.assert_allclose(got, 12 * np.arange(1, 11) / 11 - 0.5, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_translation_is_a_shifted_picture_whatever_the_scale_of_its_grid(pictures, scale):
    """Down by 2 and right by 4 pixels; zeros come in."""
    grid = identity_grid(8 // scale, 12 // scale) - jnp.array([4 * 2 / 12, 2 * 2 / 8])
    moved = warp(pictures, jnp.broadcast_to(grid, (2, *grid.shape)))
    expected = jnp.pad(pictures, ((0, 0), (2, 0), (4, 0), (0, 0)))[:, :8, :12]
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_reflection_goes_on_beyond_the_edges(pictures):
    grid = identity_grid(8, 12)[None] + jnp.array([2.0, 0.0])  # a whole width to the right
    np.testing.assert_allclose(sample_grid(pictures[:1], grid, reflect=True), pictures[:1, :, ::-1], atol=1e-5)


def test_motion_goes_on_at_edges_when_a_grid_is_enlarged():
    """What is interpolated is the displacement: an affine map is the same map at twice the size, but for its outermost
    pixels, where displacements end; of places that would be so of half a pixel even for the identity."""
    turn = jnp.array([[0.9, 0.2], [-0.1, 1.1]])
    small, large = identity_grid(8, 8) @ turn.T, identity_grid(16, 16) @ turn.T
    got = resize_grid(small[None], (16, 16))[0]
    np.testing.assert_allclose(got[1:-1, 1:-1], large[1:-1, 1:-1], atol=1e-6)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_shrinking_keeps_a_constant_and_where_things_are(factor):
    """Also at the edges; a ramp's values are those at the middles of its blocks, away from the edges."""
    flat = jnp.ones((1, 64, 64, 1))
    np.testing.assert_allclose(shrink(flat, factor), 1.0, atol=1e-6)
    ramp = identity_grid(64, 64)[None]
    inner = slice(2, -2)
    got = shrink(ramp, factor)[0][inner, inner]
    np.testing.assert_allclose(got, identity_grid(64 // factor, 64 // factor)[inner, inner], atol=1e-5)


def test_gradients_of_places_are_those_of_finite_differences(pictures):
    grid = identity_grid(3, 3)[None] * 0.7 + 0.013
    f = lambda grid: jnp.sin(sample_grid(pictures[:1], grid)).sum()
    step = jnp.asarray(np.random.default_rng(1).standard_normal(grid.shape), jnp.float32) * 1e-3
    np.testing.assert_allclose(jnp.vdot(jax.grad(f)(grid), step), (f(grid + step) - f(grid - step)) / 2, rtol=1e-2)
