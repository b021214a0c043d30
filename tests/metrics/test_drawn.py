"""The reader of drawn clips measures what is there, and says so where it is nothing that it knows."""

import dataclasses

import numpy as np
import pytest

from vidjax.data.combinations import FIELD, SHAPES, SIZES, Combination, show
from vidjax.data.shapes import MOVES
from vidjax.errors import InputError
from vidjax.metrics.drawn import agreement, read_steps, read_video, shares
from vidjax.metrics.per_video import METRICS, Judged

WHAT = Combination("large", "red", "circle", "left")
START = (0.4, 0.7)


def drawn(what=WHAT, start=START, frames=8, pixels=32):
    return show(what, start, frames, pixels)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_it_reads_through_noise_blur_and_over_the_border(size, shape):
    what = Combination(size, "blue", shape, "up")
    video = drawn(what, start=(0.13, 0.97)).astype(float)
    noise = np.random.default_rng(0).normal(0, 8, video.shape)
    blurred = (2 * video + np.roll(video, 1, 1) + np.roll(video, 1, 2)) / 4
    for changed in (video, video + noise, blurred, drawn(what, pixels=48)):
        assert read_video(np.clip(changed, 0, 255).astype(np.uint8)) == dataclasses.asdict(what)


def test_each_property_alone_is_not_said_where_it_changes_or_is_not_there():
    video, shown = drawn(), dataclasses.asdict(WHAT)
    green = drawn(dataclasses.replace(WHAT, colour="green"))
    assert read_video(np.concatenate([video[:4], green[4:]])) == shown | {"colour": ""}
    small = drawn(dataclasses.replace(WHAT, size="small"))
    assert read_video(np.concatenate([small[:4], video[4:]])) == shown | {"size": "", "shape": ""}
    assert read_video(np.repeat(video[:1], 8, 0)) == shown | {"direction": ""}
    assert read_video(video[::-1]) == shown | {"direction": "right"}
    assert read_video(video[[0, 4, 1, 5, 2, 6, 3, 7]]) == shown | {"direction": ""}
    white = np.where(video == FIELD, FIELD, 255).astype(np.uint8)
    assert read_video(white)["colour"] == ""
    assert set(read_video(np.full_like(video, FIELD[0])).values()) == {""}


def test_steps_are_those_that_the_clip_was_drawn_with():
    up, left = drawn(dataclasses.replace(WHAT, direction="up"), start=(0.1, 0.5)), drawn()
    np.testing.assert_allclose(read_steps(up), [MOVES["up"]] * 7, atol=0.1)  # over the border
    np.testing.assert_allclose(read_steps(left[[0, 2, 2]]), [(0, -2), (0, 0)], atol=0.1)
    np.testing.assert_allclose(read_steps(left[::2], 2), [MOVES["left"]] * len(left[2::2]), atol=0.1)
    assert read_video(left[::2], 2)["direction"] == "left" and read_video(left[::2])["direction"] == ""


def test_shares_are_of_each_property_and_of_all():
    other = dataclasses.replace(WHAT, shape="post", direction="up")
    found = shares([(drawn(), WHAT.caption), (drawn(), other.caption)])
    assert list(found.values()) == [1.0, 1.0, 0.5, 0.5, 0.5] and list(found)[-1] == "all four"
    with pytest.raises(InputError, match="its caption 'a cat' is none of a drawn clip, such as 'a circle that is"):
        agreement(drawn(), "a cat")


def test_evaluation_names_the_same_figures():
    other = dataclasses.replace(WHAT, size="small")
    videos = [Judged("", each.caption, drawn(), None, lambda video: video.frames) for each in (WHAT, other)]
    names = ("drawn_size", "drawn_colour", "drawn_shape", "drawn_direction", "drawn_all")
    totals = [METRICS[name].total([METRICS[name].each(video) for video in videos]) for name in names]
    assert totals == [0.5, 1.0, 1.0, 1.0, 0.5]
