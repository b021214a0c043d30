"""Drawn clips of combined properties: training has no held-out combination, but every value of every property."""

import dataclasses
from functools import partial

import pytest
from test_configs import config

from vidjax.data.combinations import CAPTIONS, COMBINATIONS, PIXELS, PLACES, PROPERTIES, SPLITS, combinations
from vidjax.data.pipeline import DataConfig, make_dataset
from vidjax.errors import InputError
from vidjax.metrics.drawn import read_video


def whole(source, index):
    with source[index].open() as video:
        return video.read(range(video.frames))


def test_training_has_no_heldout_pair_of_colour_and_shape_but_every_value():
    trained, unseen = (
        {CAPTIONS[source[i].text] for i in range(len(source))} for source in map(partial(combinations, ""), SPLITS)
    )
    assert not trained & unseen and trained | unseen == set(COMBINATIONS) and len(trained) == 72 and len(unseen) == 24
    pairs = lambda of: {(each.colour, each.shape) for each in of}
    assert pairs(unseen) == {("red", "circle"), ("green", "square"), ("blue", "triangle")}
    assert not pairs(trained) & pairs(unseen)
    for name, values in PROPERTIES.items():
        assert {getattr(each, name) for each in trained} == set(values)


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
