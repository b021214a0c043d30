"""One scalar for two sides: its gradient is each side's own, written alone."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vidjax.data.transforms import to_unit
from vidjax.diffusion.draws import draws_at
from vidjax.errors import InputError
from vidjax.models.autoencoder import PATCHES, Autoencoder
from vidjax.models.discriminator import DiscriminatorConfig, Discriminators
from vidjax.models.keys import OneKey
from vidjax.models.parameters import merge, parameters
from vidjax.models.vgg import LPIPS
from vidjax.training import objectives
from vidjax.training.adversarial import adaptive_weight, autoencoder, generator_loss, hinge, judges

SMALL = dataclasses.replace(
    PATCHES, latent_channels=3, channels=(8,), blocks=(1,), decoder_blocks=(1,), patch=(2, 2, 2), groups=4
)
CRITIC = DiscriminatorConfig(channels=4, layers=1, groups=2)
OPTIONS = dict(distance="l1", kl_weight=0.1, disc_weight=0.7)


@pytest.fixture(scope="module")
def game():
    """(graphdef, parameters, batch) of an autoencoder with a discriminator and a small LPIPS, all random."""
    model = Autoencoder(SMALL, rngs=nnx.Rngs(0))
    model.discriminator = Discriminators({"frame": CRITIC}, rngs=nnx.Rngs(1))
    model.perceptual = LPIPS(((4,), (4, 4)), rngs=nnx.Rngs(2))
    rng = np.random.default_rng(0)
    params = {path: jnp.asarray(rng.normal(0, 0.3, v.shape), jnp.float32) for path, v in parameters(model).items()}
    video = rng.integers(0, 256, (2, 4, 8, 8, 3), dtype=np.uint8)
    return nnx.graphdef(model), params, {"video": jnp.asarray(video)}


def at(step):
    return draws_at(jax.random.key(0), jnp.int32(step), 2)


def forward(model, batch, draws):
    x, q = to_unit(batch["video"]), model.encode(to_unit(batch["video"]))
    return x, model.decode(q.sample(draws.normal(q.mean.shape[1:]))), q


def test_each_side_gets_the_gradient_of_its_own_loss(game):
    graphdef, params, batch = game
    elements, latents = 4 * 8 * 8 * 3, 2 * 4 * 4 * 3

    def likeness(params):
        model = merge(graphdef, params)
        x, y, _ = forward(model, batch, at(5))
        return elements * (jnp.abs(y - x).mean() + model.perceptual(y, x).mean())

    def adversary(params):
        model = merge(graphdef, params)
        return generator_loss(model.discriminator(forward(model, batch, at(5))[1]))

    def kl(params):
        q = forward(merge(graphdef, params), batch, at(5))[2]
        return latents * q.kl().mean() / q.mean[0].size

    def discriminator(params):
        model = merge(graphdef, params)
        x, y, _ = forward(model, batch, at(5))
        return hinge(model.discriminator(x), model.discriminator(y))

    scalar = lambda params: autoencoder(merge(graphdef, params), batch, at(5), **OPTIONS, reduction="sum")
    losses = (likeness, adversary, kl, discriminator)
    both = lambda params: (jax.grad(scalar, has_aux=True)(params), [jax.grad(loss)(params) for loss in losses])
    (found, metrics), (like, against, bits, told) = jax.jit(both)(params)
    norm = lambda grads: jnp.linalg.norm(grads["decoder.conv_out.kernel"].ravel())
    weight = norm(like) / (norm(against) + 1e-4)
    np.testing.assert_allclose(metrics["adaptive_weight"], weight, rtol=1e-4)
    generator = {path: like[path] + 0.1 * bits[path] + 0.7 * weight * against[path] for path in found}
    for path, gradient in found.items():
        if not path.startswith("perceptual."):
            expected = (told if path.startswith("discriminator.") else generator)[path]
            np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4 * float(jnp.abs(expected).max()))
    assert all(np.any(found[path] != 0) for path in ("encoder.conv_in.kernel", "discriminator.frame.conv_in.kernel"))


def test_before_the_start_there_is_no_adversary(game):
    """Bit for bit whatever it is; and up to rounding, as they are two programs, what the loss without one gives."""
    graphdef, params, batch = game
    options = dict(distance="l2", kl_weight=0.1)
    play = partial(autoencoder, batch=batch, **options, perceptual_weight=0.0, start=6)
    plain = partial(objectives.autoencoder, batch=batch, **options)
    gradient = lambda loss: jax.jit(jax.grad(lambda p, draws: loss(merge(graphdef, p), draws=draws)[0]))
    expected, both = gradient(plain)(params, at(5)), gradient(play)
    early, late = (both(params, at(step)) for step in (5, 6))
    other = both({path: 2 * value if judges(path) else value for path, value in params.items()}, at(5))
    for path, value in expected.items():
        np.testing.assert_allclose(early[path], value, rtol=1e-5, atol=1e-5 * float(jnp.abs(value).max()))
        np.testing.assert_array_equal(early[path], other[path])
    own = [path for path in expected if not judges(path)]
    assert all(np.any(late[path] != expected[path]) for path in own if path.startswith("decoder."))


def test_hinge_values_in_closed_form():
    real, fake = jnp.array([[-1.0, 0.5, 3.0]]), jnp.array([[-2.0, 0.0, 1.0]])
    assert np.isclose(hinge([real], [fake]), 0.5 * ((2 + 0.5 + 0) / 3 + (0 + 1 + 2) / 3))
    assert np.isclose(hinge([real, real], [fake, fake]), 2 * hinge([real], [fake]))
    assert np.isclose(generator_loss([fake]), 1 / 3)
    assert hinge([jnp.full((2, 2), 1.0)], [jnp.full((2, 2), -1.0)]) == 0


def test_the_adaptive_weight_is_bounded():
    weights = [float(adaptive_weight(jnp.float32(a), jnp.float32(b))) for a, b in ((6, 2), (0, 1), (9, 0), (1, 0))]
    np.testing.assert_allclose(weights, [6 / 2.0001, 0, 1e4, 1e4], rtol=1e-5)


@pytest.mark.parametrize("kind", ["frame", "clip"])
def test_a_discriminator_learns_to_tell_a_real_clip_from_a_fake_one(kind):
    real, fake = (jax.random.normal(jax.random.key(i), (2, 3, 8, 8, 3)) for i in range(2))
    model = Discriminators({kind: CRITIC}, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    optimizer = optax.adam(1e-2)

    def loss(state):
        model = nnx.merge(graphdef, state)
        return hinge(model(real), model(fake))

    def step(carry, _):
        state, moments = carry
        value, grads = jax.value_and_grad(loss)(state)
        updates, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(state, updates), moments), value

    (state, _), losses = jax.jit(lambda s: jax.lax.scan(step, (s, optimizer.init(s)), length=60))(state)
    assert losses[0] > 0.5 and losses[-1] < 0.02


def test_a_patch_is_70_pixels_and_frames_are_apart():
    """A score of the 2-D discriminator without norms depends on 70 x 70 pixels of its own frame."""
    model = Discriminators({"frame": DiscriminatorConfig(channels=4, norm="none")}, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 2, 96, 96, 3))
    middle = jax.jit(jax.grad(lambda x: model(x)[0][0, 1, 5, 5, 0]))(x)
    rows, columns = (np.flatnonzero(np.abs(middle).sum(axes)) for axes in ((0, 1, 3, 4), (0, 1, 2, 4)))
    assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == 70
    assert not middle[0, 0].any()


def test_frames_without_a_whole_patch_are_refused():
    model = nnx.eval_shape(lambda: Discriminators({"frame": DiscriminatorConfig()}, rngs=OneKey()))
    video = lambda size: jax.ShapeDtypeStruct((1, 1, size, size, 3), jnp.float32)
    assert nnx.eval_shape(lambda m, x: m(x), model, video(24))[0].shape == (1, 1, 1, 1, 1)
    with pytest.raises(InputError, match="at least 24 pixels"):
        nnx.eval_shape(lambda m, x: m(x), model, video(23))
    with pytest.raises(InputError, match=r"discriminators of \['video'\] do not exist"):
        Discriminators({"video": CRITIC}, rngs=nnx.Rngs(0))
