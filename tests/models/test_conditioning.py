"""Conditions: null values, drop rates, frame masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vidjax.errors import InputError
from vidjax.models.conditioning import (
    FRAME_MASKS,
    LabelEmbedder,
    TextEmbedder,
    drop_conditions,
    embed,
    nulls,
    sample_frame_masks,
)
from vidjax.models.text_encoder import byte_ids


@pytest.fixture(scope="module")
def embedders():
    rngs = nnx.Rngs(0)
    return {
        "text": TextEmbedder(dim=8, layers=1, heads=2, length=6, drop=0.3, rngs=rngs),
        "label": LabelEmbedder(classes=5, dim=4, drop=0.1, rngs=rngs),
    }


def batch(count):
    return {"tokens": jnp.tile(byte_ids("a cat", 6), (count, 1)), "label": jnp.arange(count) % 5}


def test_each_condition_is_dropped_at_its_own_rate_and_independently(embedders):
    n = 20_000
    keys = jax.random.split(jax.random.key(1), n)
    out = drop_conditions(embedders, batch(n), keys)
    text = np.asarray((out["tokens"] == 0).all(1))
    label = np.asarray(out["label"] == -1)
    assert abs(text.mean() - 0.3) < 4 * np.sqrt(0.21 / n)
    assert abs(label.mean() - 0.1) < 4 * np.sqrt(0.09 / n)
    assert abs((text & label).mean() - 0.03) < 4 * np.sqrt(0.03 / n)


def test_a_dropped_condition_is_the_null_condition(embedders):
    everything = {name: e for name, e in embedders.items()}
    null = nulls(everything, batch(3))
    for e in everything.values():
        e.drop = 1.1
    lost = drop_conditions(everything, batch(3), jax.random.split(jax.random.key(0), 3))
    assert all((lost[key] == null[key]).all() for key in null)
    same = embed(everything, null)
    assert (same.vector == same.vector[:1]).all()  # the null says nothing of the example
    assert same.vector.shape == (3, 8 + 4)


def test_the_null_prompt_is_the_empty_one(embedders):
    ids = jnp.asarray(byte_ids("", 6))[None]
    assert (embedders["text"].null(jnp.asarray(byte_ids("dog", 6))[None]) == ids).all()


def test_frame_masks_know_what_their_names_say():
    keys = jax.random.split(jax.random.key(0), 200)
    masks = {name: np.asarray(sample_frame_masks(keys, 6, {name: 1.0})) for name in FRAME_MASKS}
    assert masks["unconditional"].sum() == 0
    assert (masks["first"] == [1, 0, 0, 0, 0, 0]).all()
    assert (masks["interpolation"] == [1, 0, 0, 0, 0, 1]).all()
    prediction = masks["prediction"]
    assert (np.diff(prediction, axis=1) <= 0).all()  # known frames come first
    assert set(prediction.sum(1)) == {1, 2, 3}


def test_kinds_of_masks_come_with_their_weights():
    n = 20_000
    masks = sample_frame_masks(jax.random.split(jax.random.key(0), n), 4, {"unconditional": 3.0, "first": 1.0})
    assert abs(float(masks.max(1).mean()) - 0.25) < 4 * np.sqrt(0.1875 / n)
    with pytest.raises(InputError, match="did you mean 'prediction'"):
        sample_frame_masks(jax.random.split(jax.random.key(0), 2), 4, {"predicton": 1.0})
