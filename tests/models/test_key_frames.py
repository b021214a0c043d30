"""Attention to other frames: every choice of keys is full attention over all frames under a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx

from vidjax.errors import InputError
from vidjax.models.attention import Attention, gather_frames, key_frames
from vidjax.models.kernels.attention import attend_at_once
from vidjax.models.layers import Context
from vidjax.models.sublayers import SUBLAYERS
from vidjax.models.unet import UNet, UNetConfig

T, N = 5, 4
# Row i: how often frame i looks at each of the five; seen twice is seen once where nothing else is seen.
SEEN = {
    "first": [[1, 0, 0, 0, 0]] * 5,
    "first_and_previous": [[2, 0, 0, 0, 0], [2, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 1, 0]],
    "previous": [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]],
    "previous:3": [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]],
    "window": [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 0, 1, 1]],
    "window:2": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 1, 1, 1]],
    "window:9": [[1, 1, 1, 1, 1]] * 5,
    "causal": [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    "all": [[1, 1, 1, 1, 1]] * 5,
}
SPARSE = {"first": 1, "first_and_previous": 2, "previous": 1, "previous:3": 3, "window": 3, "window:2": 5}


def layer(keys):
    return Attention(8, 2, keys, rngs=nnx.Rngs(0))


def context(t, **more):
    return Context(jnp.zeros((2, t, 1)), **more)


def video(t=T):
    return jax.random.normal(jax.random.key(0), (2, t, N, 8))


def masked(module, x, seen):
    """The layer written out: one sequence of all tokens, a token's keys are those of the frames that its frame sees."""
    h = module.norm(x)
    q, k, v = (rearrange(f(h), "b t n c -> b (t n) c") for f in (module.to_q, module.to_k, module.to_v))
    mask = jnp.asarray(np.repeat(np.repeat(np.array(seen) > 0, N, 0), N, 1)[None, None])
    return x + module.to_out(rearrange(attend_at_once(q, k, v, 4, mask), "b (t n) c -> b t n c", t=x.shape[1]))


@pytest.mark.parametrize("keys", SEEN)
def test_every_choice_is_full_attention_under_a_mask(keys):
    module, x = layer(keys), video()
    got, expected = jax.jit(lambda x: (module(x, context(T)), masked(module, x, SEEN[keys])))(x)
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize("keys", SEEN)
def test_the_gradient_is_that_of_the_masked_form(keys):
    module, x = layer(keys), video()
    routes = (lambda x: module(x, context(T)), lambda x: masked(module, x, SEEN[keys]))
    got, expected = (jax.jit(jax.grad(lambda x, f=f: jnp.sin(f(x)).sum()))(x) for f in routes)
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("keys", SEEN)
def test_the_frames_are_those_written_down(keys):
    frames, there = key_frames(keys)(T)
    counts = [np.bincount(row[ok], minlength=T).tolist() for row, ok in zip(frames, there)]
    assert counts == SEEN[keys]
    if keys in SPARSE:  # as many at any length: the cost is linear in the frames
        assert {key_frames(keys)(t)[0].shape[1] for t in (2, 5, 40)} == {SPARSE[keys]}


@pytest.mark.parametrize("keys", SEEN)
def test_gathered_frames_are_those_of_an_index(keys):
    a, frames = video(), key_frames(keys)(T)[0]
    expected = np.asarray(a)[:, frames].reshape(2, T, -1, 8)
    np.testing.assert_array_equal(gather_frames(a, frames), expected)


@pytest.mark.parametrize("keys", SEEN)
def test_an_image_looks_at_itself(keys):
    x = video(1)
    got, alone = jax.jit(lambda x: (layer(keys)(x, context(1)), layer("frame")(x, context(1))))(x)
    np.testing.assert_allclose(got, alone, atol=1e-6)


@pytest.mark.parametrize("keys", SEEN)
def test_stills_beside_a_clip_look_at_themselves(keys):
    """Three frames and two stills: the clip does not see the stills, nor they the clip or each other."""
    module, x = layer(keys), video()
    together, clip = jax.jit(lambda x: (module(x, context(T, images=2)), module(x[:, :3], context(3))))(x)
    stills = jax.jit(lambda x: layer("frame")(x, context(2)))(x[:, 3:])
    np.testing.assert_allclose(together[:, :3], clip, atol=1e-6)
    np.testing.assert_allclose(together[:, 3:], stills, atol=1e-6)


@pytest.mark.parametrize("keys", ["frist", "window:0", "window:x", "causal:2", "frame:1", "previous:-1", ""])
def test_other_keys_are_refused(keys):
    with pytest.raises(InputError, match="attention's keys"):
        layer(keys)
    with pytest.raises(InputError, match="sublayer 'attn1'") as error:
        UNetConfig(channels=(8,), attention_levels=True, heads=2, groups=4, block=(("attn1", keys),))
    assert all(kind in str(error.value).partition("choose one of ")[2].split(", ") for kind in SUBLAYERS)


@pytest.mark.parametrize("keys", ["zero_shot", "window:1"])
def test_a_unet_with_other_keys_has_the_image_models_parameters(keys):
    block = keys if keys == "zero_shot" else (("attn1", keys), ("attn2", "tokens"), ("ff", "ff"))
    small = dict(channels=(8,), blocks_per_level=0, attention_levels=True, heads=2, groups=4, tokens_dim=6)
    image, inflated = (UNet(UNetConfig(**small, block=b), rngs=nnx.Rngs(0)) for b in ("spatial", block))
    graph, random = nnx.graphdef(inflated), np.random.default_rng(0)
    state = jax.tree.map(lambda a: a + jnp.asarray(0.3 * random.standard_normal(a.shape, "f")), nnx.state(image))
    nnx.update(image, state)
    inflated = nnx.merge(graph, state)  # the same paths
    still, tokens = jnp.ones((1, 1, 4, 4, 4)), jnp.ones((1, 3, 6))
    x = jax.random.normal(jax.random.key(0), (1, 3, 4, 4, 4))
    run = jax.jit(lambda model, x: model(x, jnp.zeros(x.shape[:2]), tokens=tokens))
    np.testing.assert_allclose(run(inflated, still), run(image, still), atol=1e-5)
    # Frames that are all the same see the same as a still does.
    np.testing.assert_allclose(
        run(inflated, jnp.repeat(x[:, :1], 3, 1)), run(image, jnp.repeat(x[:, :1], 3, 1)), atol=1e-5
    )
    other = x.at[:, 0].add(1.0)
    assert not np.allclose(run(inflated, other)[:, 1], run(inflated, x)[:, 1], atol=1e-3)
    np.testing.assert_array_equal(run(image, other)[:, 1], run(image, x)[:, 1])
