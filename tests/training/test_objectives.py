"""Objectives in closed form: models whose loss is known, and the equality of micro-batches with the whole batch."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.data.transforms import to_unit
from vidjax.diffusion.draws import draws_at
from vidjax.diffusion.schedule import cosine, flow
from vidjax.errors import InputError
from vidjax.models.autoencoder import Posterior
from vidjax.training import objectives

SCHEDULES = {"cosine": cosine(steps=None), "flow": flow()}


def predictor(predict, told=lambda t: None):
    """What the objective needs of a model: pixels as latents, no conditions, and a prediction."""

    class Model:
        def __init__(self):
            self.embedders = {}

        def latents(self, video, normal=None):
            return to_unit(video)

        def __call__(self, x, t, cond, images=0):
            told(t)
            return predict(x, cond)

    return Model()


def batch(count=64, frames=4):
    video = np.random.default_rng(0).integers(0, 256, (1, frames, 4, 4, 3), dtype=np.uint8)
    return {"video": jnp.tile(video, (count, 1, 1, 1, 1))}


def draws(count=64):
    return draws_at(jax.random.key(0), jnp.int32(3), count)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("distance", objectives.DISTANCES)
def test_a_model_that_knows_the_data_has_no_loss(name, distance):
    exact = predictor(lambda x, cond: to_unit(batch()["video"]))
    loss, _ = objectives.diffusion(
        exact, batch(), draws(), schedule=SCHEDULES[name], prediction="x0", distance=distance
    )
    assert abs(float(loss)) <= (0.011 if distance == "charbonnier" else 1e-9)  # charbonnier: sqrt(1e-4) at 0


def test_predicting_nothing_costs_the_variance_of_the_noise():
    nothing = predictor(lambda x, cond: jnp.zeros_like(x))
    loss, _ = objectives.diffusion(nothing, batch(), draws(), schedule=SCHEDULES["cosine"], prediction="eps")
    count = 64 * 4 * 4 * 4 * 3
    assert abs(float(loss) - 1) < 4 * np.sqrt(2 / count)


def test_known_frames_are_told_and_do_not_count():
    def predict(x, cond):
        assert cond.mask is not None
        return jnp.where(cond.mask[..., None, None, None] > 0, 1e3, to_unit(batch()["video"]))

    options = dict(schedule=SCHEDULES["cosine"], prediction="x0", frame_masks={"prediction": 1.0, "interpolation": 1.0})
    loss, _ = objectives.diffusion(predictor(predict), batch(), draws(), **options)
    assert float(loss) == 0


def test_known_frames_come_clean_at_level_zero():
    def predict(x, cond):
        return jnp.where(cond.mask[..., None, None, None] > 0, 0.0, x - to_unit(batch()["video"])) + to_unit(
            batch()["video"]
        )

    seen = {}

    def look(x, cond):
        seen["error"] = jnp.abs(x - to_unit(batch()["video"])) * cond.mask[..., None, None, None]
        return predict(x, cond)

    options = dict(schedule=SCHEDULES["cosine"], prediction="x0", frame_masks={"first": 1.0}, known_level=0.0)
    objectives.diffusion(predictor(look), batch(), draws(), **options)
    assert float(seen["error"].max()) < 1e-3


@pytest.mark.parametrize("name", SCHEDULES)
def test_known_frames_come_at_one_random_level_up_to_the_bound_and_the_network_is_told(name):
    schedule, seen = SCHEDULES[name], {}
    model = predictor(lambda x, cond: seen.setdefault("x", x), told=lambda t: seen.setdefault("t", t))
    masks = dict(frame_masks={"interpolation": 1.0}, known_level=0.25)
    objectives.diffusion(model, moving(), draws(), schedule=schedule, prediction="x0", **masks)
    t = np.asarray(seen["t"]) / 1000  # what the network is told of times from 0 to 1
    known, bound = t[:, [0, 3]], float(schedule.sample_t(jnp.float32(0.25)))
    np.testing.assert_array_equal(known[:, 0], known[:, 1])
    assert 0.8 * bound < known.max() <= bound + 1e-6 and known.min() < 0.2 * bound
    assert t[:, 1:3].max() > 0.9  # the others are at any
    told = jnp.asarray(known[:, :1])
    error = seen["x"][:, :1] - schedule.alpha(told)[..., None, None, None] * to_unit(moving()["video"])[:, :1]
    noise = np.asarray(error.std((1, 2, 3, 4)) / schedule.sigma(told)[:, 0])
    assert 0.9 < noise.mean() < 1.1


def test_only_each_nth_latent_is_a_key():
    seen = {}
    options = dict(schedule=flow(shift=1e-7), prediction="x0", every=2)
    objectives.diffusion(predictor(lambda x, cond: seen.setdefault("x", x)), moving(), draws(), **options)
    np.testing.assert_allclose(seen["x"], to_unit(moving()["video"])[:, ::2], atol=1e-3)


def test_stills_follow_the_clip_and_are_never_known():
    images = batch()["video"][:, :2]

    def predict(x, cond):
        assert x.shape[1] == 6
        assert float(cond.mask[:, 4:].max()) == 0
        return jnp.concatenate([to_unit(batch()["video"]), to_unit(images)], 1)

    options = dict(schedule=SCHEDULES["cosine"], prediction="x0", frame_masks={"interpolation": 1.0})
    loss, _ = objectives.diffusion(predictor(predict), {**batch(), "images": images}, draws(), **options)
    assert float(loss) == 0


def test_the_autoencoder_pays_for_what_it_loses_and_for_its_bits():
    mean, logvar = jnp.full((64, 2, 2, 2, 3), 0.5), jnp.full((64, 2, 2, 2, 3), -60.0)
    kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).sum((1, 2, 3, 4))
    posterior = Posterior(mean, logvar)
    target = to_unit(batch()["video"])
    model = SimpleNamespace(encode=lambda x: posterior, decode=lambda z: target + 0.1)
    loss, metrics = objectives.autoencoder(model, batch(), draws(), distance="l1", kl_weight=0.5)
    assert np.isclose(float(metrics["reconstruction"]), 0.1, rtol=1e-4)
    assert np.isclose(float(metrics["psnr"]), 20 * np.log10(2 / 0.1), rtol=1e-4)
    assert np.isclose(float(loss), 0.1 + 0.5 * float(kl[0]) / 24, rtol=1e-4)


def moving(count=64, frames=4):
    video = np.random.default_rng(1).integers(0, 256, (count, frames, 4, 4, 3), dtype=np.uint8)
    return {"video": jnp.asarray(video)}


def off_by(offset, x0=None, **options):
    """The loss of a model that knows the data, but for `offset` [t]."""
    x0 = to_unit(batch()["video"]) if x0 is None else x0
    model = predictor(lambda x, cond: x0 + jnp.asarray(offset)[:, None, None, None])
    return objectives.diffusion(model, batch(), draws(), schedule=SCHEDULES["cosine"], prediction="x0", **options)[0]


def test_debiasing_forgives_what_is_wrong_in_all_frames_alike():
    offset = np.full(4, 0.3)
    only_debiased = lambda beta: off_by(offset, debiased=1.0, anchor=beta) - off_by(offset)
    for beta in (0.0, 1.0, 3.0):
        expected = (np.sqrt(beta**2 + 1) - beta) ** 2 * 0.3**2  # phi of a constant e is (sqrt(b^2 + 1) - b) e
        assert np.isclose(float(only_debiased(beta)), expected, rtol=1e-4)


def test_the_anchor_is_a_random_unknown_frame_of_the_same_clip():
    residual = jax.random.normal(jax.random.key(2), (64, 5, 2, 2, 3))
    unknown = jnp.ones((64, 5)).at[:, 1].set(0)
    found = objectives.debias(draws(), residual, unknown, 1, 0.5)
    np.testing.assert_array_equal(found[:, 4], 0)  # the still
    each = jnp.sqrt(1.25) * residual[:, None, :4] - 0.5 * residual[:, :4, None]  # [b, anchor, t, h, w, c]
    wrong = np.abs(each - found[:, None, :4]).max((2, 3, 4, 5))
    assert wrong.min(1).max() < 1e-6
    assert set(wrong.argmin(1)) == {0, 2, 3}


def test_an_anchor_is_never_a_known_frame():
    def predict(x, cond):
        return jnp.where(cond.mask[..., None, None, None] > 0, 1e3, to_unit(batch()["video"]))

    options = dict(schedule=SCHEDULES["cosine"], prediction="x0", frame_masks={"prediction": 1.0}, debiased=1.0)
    assert float(objectives.diffusion(predictor(predict), batch(), draws(), **options)[0]) == 0


def test_own_frames_ride_along_as_stills():
    """A model that reads its frames off the noisy ones at hardly any noise sees a permutation of the clip after it."""
    seen = {}

    def look(x, cond):
        seen["x"] = x
        return x

    options = dict(schedule=flow(shift=1e-7), prediction="x0", own_images=4)
    objectives.diffusion(predictor(look), moving(), draws(), **options)
    clip, stills = to_unit(moving()["video"]), np.asarray(seen["x"][:, 4:])
    distance = np.abs(stills[:, :, None] - np.asarray(clip)[:, None]).max((3, 4, 5))
    order = distance.argmin(2)
    assert distance.min(2).max() < 1e-3
    assert (np.sort(order, 1) == np.arange(4)).all() and len(np.unique(order, axis=0)) > 10
    with pytest.raises(InputError, match="own_images=5 frames cannot be taken from clips of 4"):
        objectives.diffusion(predictor(look), moving(), draws(), **options | dict(own_images=5))


def test_stills_have_their_share_of_the_loss():
    images = batch()["video"][:, :2]
    x0 = jnp.concatenate([to_unit(batch()["video"]), to_unit(images)], 1)
    wrong = x0 + jnp.array([0.1] * 4 + [0.4] * 2)[:, None, None, None]
    model = predictor(lambda x, cond: wrong[:, -x.shape[1] :])
    options = dict(schedule=SCHEDULES["cosine"], prediction="x0")
    loss = lambda **more: float(
        objectives.diffusion(model, {**batch(), "images": images}, draws(), **options, **more)[0]
    )
    for share in (0.0, 0.35, 1.0):
        assert np.isclose(loss(image_share=share), (1 - share) * 0.1**2 + share * 0.4**2, rtol=1e-4)
    assert np.isclose(loss(), (4 * 0.1**2 + 2 * 0.4**2) / 6, rtol=1e-4)
    assert np.isclose(loss(debiased=1.0), loss() + 4 * 0.1**2 * (np.sqrt(2) - 1) ** 2 / 6, rtol=1e-4)


def test_where_stills_are_all_the_loss_the_network_sees_no_clip():
    """MotionDirector's spatial loss: one random frame of the clip, another one with other draws."""
    seen = []

    def look(x, cond):
        seen.append(np.asarray(x))
        return x

    options = dict(schedule=flow(shift=1e-7), prediction="x0", own_images=1, image_share=1.0)
    objectives.diffusion(predictor(look), moving(), draws(), **options)
    clip = np.asarray(to_unit(moving()["video"]))
    assert seen[0].shape[1] == 1
    distance = np.abs(seen[0] - clip).max((2, 3, 4))
    assert distance.min(1).max() < 1e-3 and len(np.unique(distance.argmin(1))) == clip.shape[1]
    with pytest.raises(InputError, match=r"debiased=1\.0 is a loss of clips"):
        objectives.diffusion(predictor(look), moving(), draws(), **options, debiased=1.0)


def gain_loss(objective, batch, draws, gain):
    """Of a linear model: the prediction is `gain` times the noisy video."""
    return objective(predictor(lambda x, cond: gain * x), batch, draws)[0]


def test_prior_preservation_adds_the_loss_of_the_class():
    plain = partial(objectives.diffusion, schedule=SCHEDULES["cosine"])
    own, other, gain = draws().named("instance"), draws().named("prior"), jnp.float32(0.7)
    both = {**batch(), "prior": moving()}
    value = jax.value_and_grad(gain_loss, argnums=3)
    instance, prior = value(plain, batch(), own, gain), value(plain, moving(), other, gain)
    np.testing.assert_array_equal(value(objectives.with_prior(plain, 0.0), both, draws(), gain), instance)
    for weight in (1.0, 2.5):
        found = value(objectives.with_prior(plain, weight), both, draws(), gain)
        np.testing.assert_allclose(found, [i + weight * p for i, p in zip(instance, prior)], rtol=1e-5)
    with pytest.raises(InputError, match=r"in 'prior'; batches have \['video'\]"):
        objectives.with_prior(plain)(None, batch(), draws())
