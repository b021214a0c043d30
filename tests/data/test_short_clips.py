"""Recipes that ask for more than the data has."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny

from vidjax import settings
from vidjax.data import transforms
from vidjax.data.pipeline import DataConfig, make_dataset
from vidjax.data.short_clips import fit_window
from vidjax.data.source import Item, Source
from vidjax.data.video_reading import ArrayVideo, BrokenClip
from vidjax.errors import InputError
from vidjax.recipes import build as recipe
from vidjax.recipes.tuning import fitted
from vidjax.training.stage import fit


def clips(*lengths):
    """Clips of so many frames; 0: one that cannot be opened."""

    def opened(frames):
        if not frames:
            raise BrokenClip("damaged")
        return ArrayVideo(np.zeros((frames, 8, 8, 3), np.uint8), 30.0)

    return Source(len(lengths), lambda i: Item(f"{i}.mp4", "", -1, lambda: opened(lengths[i])))


def reach(config, stride):
    return transforms.window_span(config.frames, float(stride))


@pytest.mark.parametrize("length", [1, 2, 15, 16, 24, 46])
@pytest.mark.parametrize("asked", [dict(stride=2), dict(fps=8.0), dict(stride=2, heldout=8)])
def test_a_short_clip_gets_a_window_as_long_as_it_can_be(length, asked):
    config = DataConfig(source="clip", frames=24, **asked)
    made, note = fit_window(config, clips(0, length))
    assert made.frames == min(24, length) and made.heldout == 0 and made.fps is None and note
    assert reach(made, made.stride) <= length
    assert made.frames == 1 or reach(made, made.stride + 1) > length


def test_a_clip_that_is_long_enough_changes_nothing():
    config = DataConfig(source="clip", frames=24, stride=2, heldout=3)
    assert fit_window(config, clips(10, 50)) == (config, "")
    assert fit_window(config, clips(0)) == (config, "")  # whoever reads it says what is wrong


def test_a_plan_needs_no_clips():
    config = DataConfig(source="clip", path="/nowhere", frames=24)
    assert fitted(config) == (config, "")


def test_a_small_data_set_makes_the_batch_smaller():
    config = settings.checked(tiny.get_config("pixels"))
    config["stages"]["diffusion"]["train"] |= dict(batch_size=64, accumulate=4)
    stage = recipe.build(config, "diffusion", Path("nowhere"))
    small = fit(stage, stage.dataset())  # of 48 drawn shapes
    assert (small.train.batch_size, small.train.accumulate) == (48, 4) and len(small.notes) == 1
    assert fit(small, stage.dataset()) == small
    recipe.check(stage)
    alone = make_dataset(DataConfig(frames=2, size=8), seed=0)  # the eight shipped clips
    odd = dataclasses.replace(stage, train=dataclasses.replace(stage.train, batch_size=9, accumulate=3))
    assert (fit(odd, alone).train.batch_size, fit(odd, alone).train.accumulate) == (8, 2)


def test_validation_of_a_stage_that_has_none_is_refused_before_it_trains(tmp_path):
    config = settings.checked(tiny.get_config("latent"))
    config["stages"]["autoencoder"]["train"] |= dict(validate_every=2)
    with pytest.raises(InputError, match=r"train\.validate_every=2: stage autoencoder is not validated"):
        recipe.check(recipe.build(config, "autoencoder", tmp_path))
