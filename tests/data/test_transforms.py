"""Windows, crops and ranges by their closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.data import crops, transforms


def test_pixel_range_round_trip():
    every = np.arange(256, dtype=np.uint8)
    unit = transforms.to_unit(every)
    assert unit.min() == -1 and unit.max() == 1
    np.testing.assert_array_equal(transforms.to_uint8(unit), every)
    np.testing.assert_array_equal(transforms.to_uint8(transforms.to_unit(jnp.asarray(every))), every)
    np.testing.assert_array_equal(transforms.to_uint8(np.float32([-3, 3])), [0, 255])


@pytest.mark.parametrize("have", [(30, 70), (70, 30), (7, 9), (64, 64)])
def test_cover_is_the_smallest_that_keeps_aspect(have):
    height, width = crops.cover_size(*have, (24, 40))
    assert height >= 24 and width >= 40 and (height == 24 or width == 40)
    assert abs(height / have[0] - width / have[1]) <= 0.5 / min(have)


def test_crops_reach_both_ends():
    video = np.arange(6 * 8, dtype=np.uint8).reshape(1, 6, 8, 1)
    np.testing.assert_array_equal(crops.crop_at(video, (4, 4), (0.0, 0.0)), video[:, :4, :4])
    np.testing.assert_array_equal(crops.crop_at(video, (4, 4), (0.999, 0.999)), video[:, 2:, 4:])
    np.testing.assert_array_equal(crops.crop_at(video, (4, 4), (0.5, 0.5)), video[:, 1:5, 2:6])


def test_frame_rate_sets_the_step():
    assert transforms.frame_step(30.0, 3, None) == 3
    step = transforms.frame_step(30.0, 1, 12.0)
    np.testing.assert_array_equal(transforms.window_indices(4, 5, step), [4, 6, 9, 11, 14])
    assert transforms.window_span(5, step) == 11
    assert transforms.window_starts(11, 5, step) == 1
    assert transforms.window_starts(10, 5, step) == 0


def test_spread_starts_do_not_overlap_and_reach_the_end():
    assert transforms.spread_starts(9, 8, None) == [0, 8]
    assert transforms.spread_starts(8, 8, None) == [0]
    assert transforms.spread_starts(21, 4, 3) == [0, 10, 20]
    assert transforms.spread_starts(2, 4, 9) == [0, 1]
