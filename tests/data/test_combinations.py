"""Drawn clips of combined properties: training has no held-out combination, but every value of every property."""

import dataclasses
from functools import partial
from itertools import combinations as combinations_of
from itertools import product

import numpy as np
import pytest
from test_configs import config

from vidjax.data.combinations import (
    CAPTIONS,
    COMBINATIONS,
    PIXELS,
    PLACES,
    PROPERTIES,
    SHAPES,
    SIZES,
    SPLITS,
    combinations,
)
from vidjax.data.pipeline import DataConfig, make_dataset
from vidjax.data.shapes import coverage
from vidjax.errors import InputError
from vidjax.metrics.drawn import OVERLAP, read_video


def whole(source, index):
    with source[index].open() as video:
        return video.read(range(video.frames))


def test_training_lacks_one_direction_of_all_that_moves_but_no_three_values_together():
    trained, unseen = (
        {CAPTIONS[source[i].text] for i in range(len(source))} for source in map(partial(combinations, ""), SPLITS)
    )
    assert not trained & unseen and trained | unseen == set(COMBINATIONS) and len(trained) == 108 and len(unseen) == 36
    assert len({(each.size, each.colour, each.shape) for each in unseen}) == 36
    for names in combinations_of(PROPERTIES, 3):
        seen = {tuple(getattr(each, name) for name in names) for each in trained}
        assert seen == set(product(*(PROPERTIES[name] for name in names)))


def test_the_recipe_trains_on_one_split_and_samples_captions_of_the_other():
    made = config("lvdm:shapes")
    dataset = make_dataset(DataConfig(**made["data"]), seed=0)
    prompts = made["sample"]["prompts"].split(";")
    assert set(prompts) == {each.caption for each in SPLITS["heldout"]} and not set(prompts) & set(dataset.texts)


def test_every_clip_shows_its_caption():
    """Of every combination another way across the picture."""
    for split, shown in SPLITS.items():
        source = combinations(split=split)
        for number, what in enumerate(shown):
            video = whole(source, number * PLACES + number % PLACES)
            assert source[number * PLACES].text == what.caption
            assert read_video(video[-8:]) == dataclasses.asdict(what)


def test_ways_of_one_combination_differ():
    source = combinations()
    assert len({whole(source, i).tobytes() for i in range(PLACES)}) == PLACES
    assert whole(source, 0).shape[1:] == (PIXELS, PIXELS, 3)


def test_another_split_is_refused():
    with pytest.raises(InputError, match=r"data\.split='test' is unknown: choose from train, heldout"):
        combinations(split="test")


def test_a_post_is_a_bar_on_end_twice_as_long_as_thick():
    bar, post = (coverage(shape, 64, 0.2) for shape in ("bar", "post"))
    assert np.allclose(post, bar.T) and np.isclose(bar.sum() / 64**2, 0.4 * 0.2, rtol=0.02)
    assert np.isclose(bar.max(0).sum() / bar.max(1).sum(), 2, rtol=0.05)


def test_no_two_pictures_overlap_as_much_as_the_reader_asks_for():
    drawn = [coverage(shape, PIXELS, radius) for shape in SHAPES for radius in SIZES.values()]
    overlap = lambda a, b: np.minimum(a, b).sum() / np.maximum(a, b).sum()
    assert max(overlap(*pair) for pair in combinations_of(drawn, 2)) < OVERLAP
