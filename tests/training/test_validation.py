"""The loss on held-out windows: an average over the noise levels, of windows that training does not see."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vidjax.data.pipeline import DataConfig, make_dataset
from vidjax.diffusion.schedule import cosine
from vidjax.training.state import TrainState
from vidjax.training.validation import LEVELS, by_noise_level


class Scale(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))


def level_reached(model, batch, draws):
    """A loss that says at which times it was asked, of which parameters."""
    return (model.scale[...] * schedule.sample_t(draws.uniforms)).mean(), {}


schedule = cosine(None)


def test_the_levels_tile_the_training_times_and_the_average_is_asked():
    state = TrainState.create(Scale(), optax.sgd(1.0))
    state.ema["scale"] = jnp.asarray(2.0)
    found = by_noise_level(level_reached, schedule)(state, {"label": np.zeros(5, np.int32)})
    loss = found.pop("validation/loss")
    middle = (np.arange(LEVELS) + 0.5) / LEVELS
    np.testing.assert_allclose([*found.values()], 2 * schedule.sample_t(jnp.asarray(middle)), rtol=1e-5)
    named = [float(name.removeprefix("validation/logsnr_")) for name in found]
    np.testing.assert_allclose(named, schedule.logsnr(jnp.asarray(middle)), atol=0.06)
    assert loss == pytest.approx(1.0)  # 2 times the mean of uniform times


def test_the_noise_is_the_same_at_every_call_and_another_for_each_example():
    noise = lambda model, batch, draws: (jnp.square(draws.normal((3,))[1] - draws.normal((3,))[0]).sum(), {})
    state = TrainState.create(Scale(), optax.sgd(1.0))
    ask, batch = by_noise_level(noise, schedule), {"label": np.zeros(2, np.int32)}
    first = ask(state, batch)
    assert first == ask(jax.tree.map(lambda x: x + 7, state), batch) and first["validation/loss"] > 0


def test_held_out_windows_are_none_that_train():
    config = DataConfig(source="webvid", frames=4, size=16, heldout=4)  # the shipped clips
    tokenize = lambda text: np.frombuffer(text[:2].encode(), np.uint8).astype(np.int32)
    dataset = make_dataset(config, seed=0, tokenize=tokenize)
    (batch,) = dataset.held_out(5)
    assert len(batch["video"]) == len(batch["label"]) == len(batch["tokens"]) == 5
    for number, video, tokens in zip(dataset.sample_of(5), batch["video"], batch["tokens"]):
        (train,) = dataset.windows("train", per_clip=1000, clips=[number])
        assert not any(np.array_equal(video, window) for window in train)
        np.testing.assert_array_equal(video, dataset.windows("heldout", clips=[number])[0][0])
        np.testing.assert_array_equal(tokens, tokenize(dataset.texts[number]))
    assert make_dataset(DataConfig(frames=4, size=16), seed=0).held_out(5) == []
