"""Objectives in closed form: models whose loss is known, and the equality of micro-batches with the whole batch."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax import objectives
from vidjax.data.transforms import to_unit
from vidjax.diffusion.schedule import cosine, flow
from vidjax.train_step import draws_at

SCHEDULES = {"cosine": cosine(steps=None), "flow": flow()}


def predictor(predict):
    """What the objective needs of a model: pixels as latents, no conditions, and a prediction."""

    class Model:
        def __init__(self):
            self.embedders = {}

        def latents(self, video, normal=None):
            return to_unit(video)

        def __call__(self, x, t, cond, images=0):
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
    posterior = SimpleNamespace(mean=mean, logvar=logvar, kl=lambda: kl)
    target = to_unit(batch()["video"])
    model = SimpleNamespace(encode=lambda x: posterior, decode=lambda z: target + 0.1)
    loss, metrics = objectives.autoencoder(model, batch(), draws(), distance="l1", kl_weight=0.5)
    assert np.isclose(float(metrics["reconstruction"]), 0.1, rtol=1e-4)
    assert np.isclose(float(metrics["psnr"]), 20 * np.log10(2 / 0.1), rtol=1e-4)
    assert np.isclose(float(loss), 0.1 + 0.5 * float(kl[0]) / 24, rtol=1e-4)
