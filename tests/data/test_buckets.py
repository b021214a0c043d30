"""Shapes are chosen from the clips alone: what holds of every choice, whatever the clips."""

import itertools
import math
import random

import numpy as np
import pytest

from vidjax.data.buckets import Limits, assign, choose_buckets, describe_buckets, nearest_shape, overlap
from vidjax.data.transforms import longest_window, window_span
from vidjax.errors import InputError

LIMITS = (Limits(16, 64 * 64, (1, 8)), Limits(8, 96 * 48, (4, 16)), Limits(24, 40 * 40), Limits(1, 32 * 32, (1, 32)))


def clips_of(seed):
    draw = random.Random(seed)
    size = lambda: draw.choice((17, 32, 48, 64, 100, 240, 480, 1080, 1920))
    return [(draw.choice((1, 4, 7, 8, 16, 50, 900)), size(), size()) for _ in range(draw.randrange(1, 30))]


CASES = list(itertools.product(range(12), LIMITS))


@pytest.mark.parametrize("seed, limits", CASES)
def test_every_clip_that_is_long_enough_finds_a_shape_that_fits_it(seed, limits):
    clips = clips_of(seed)
    for count in (1, 3):
        buckets = choose_buckets(clips, count, limits)
        assert len(set(buckets)) == len(buckets) <= count
        for t, h, w in buckets:
            assert 0 < t <= limits.frames and 0 < h * w <= limits.pixels
            assert t % limits.multiple[0] == h % limits.multiple[1] == w % limits.multiple[1] == 0
        for clip, k in zip(clips, assign(clips, buckets, limits), strict=True):
            assert (k is None) == (clip[0] < limits.multiple[0])
            assert k is None or buckets[k][0] <= clip[0]


@pytest.mark.parametrize("seed, limits", CASES)
def test_neither_the_order_of_clips_nor_their_copies_change_the_choice(seed, limits):
    clips, draw = clips_of(seed), random.Random(seed)
    chosen = choose_buckets(clips, 4, limits)
    shuffled = draw.sample(clips, len(clips))
    assert choose_buckets(shuffled, 4, limits) == chosen == choose_buckets(2 * clips, 4, limits)
    own = dict(zip(clips, assign(clips, chosen, limits)))
    assert [own[clip] for clip in shuffled] == assign(shuffled, chosen, limits)


@pytest.mark.parametrize("seed, limits", CASES)
def test_what_is_lost_is_bounded_and_less_with_more_shapes(seed, limits):
    """One shape a clip loses no more than rounding down to the multiples does, where the clip has one of each."""
    clips = [clip for clip in clips_of(seed) if nearest_shape(clip, limits)]
    if not clips:
        return
    kept = [overlap(clips, choose_buckets(clips, count, limits), limits).max(1) for count in (1, 2, 4, 999)]
    assert all(np.all((each >= 0) & (each <= 1)) for each in kept)
    means = [each.mean() for each in kept]
    assert all(less <= more + 1e-9 for less, more in itertools.pairwise(means))
    step, side = limits.multiple
    for (t, h, w), best in zip(clips, kept[-1]):
        scale, frames = min(1, math.sqrt(limits.pixels / (h * w))), min(t, limits.frames)
        if min(h, w) * scale >= side:
            down = [n // m * m / n for n, m in ((frames, step), (h * scale, side), (w * scale, side))]
            assert best >= math.prod(down) - 1e-9
        assert best == pytest.approx(overlap([(t, h, w)], [nearest_shape((t, h, w), limits)], limits)[0, 0], rel=0.2)


def test_clips_that_fit_the_limits_lose_nothing_and_the_table_says_so():
    limits, clips = Limits(8, 32 * 32, (2, 8)), [(8, 32, 32), (90, 16, 64), (6, 32, 32), (6, 32, 32)]
    buckets = choose_buckets(clips, 9, limits)
    assert buckets == [(6, 32, 32), (8, 16, 64), (8, 32, 32)]
    of = assign([*clips, (1, 32, 32)], buckets, limits)
    assert of == [2, 1, 0, 0, None]
    rows = [line.split() for line in describe_buckets([*clips, (1, 32, 32)], buckets, of, limits).splitlines()]
    assert rows[1] == ["6", "32x32", "2", "0.0%"] and rows[-1] == ["all", "4", "0.0%"]


def test_overlap_counts_pixels():
    """A picture cut to its left half; one that is enlarged twofold each way; a window of a quarter of the frames."""
    limits = Limits(8, 64 * 64)
    assert overlap([(8, 64, 64)], [(8, 64, 32)], limits)[0, 0] == 0.5
    assert overlap([(8, 32, 32)], [(8, 64, 64)], limits)[0, 0] == 0.25
    assert overlap([(99, 128, 128)], [(2, 64, 64)], limits)[0, 0] == 0.25
    assert overlap([(4, 64, 64)], [(8, 64, 64)], limits)[0, 0] == 0


def test_the_best_of_all_pairs_is_found_for_few_clips():
    limits = Limits(8, 64 * 64, (1, 16))
    for seed in range(6):
        clips = [clip for clip in clips_of(seed) if clip[0] >= 8][:6]
        if not clips:
            continue
        near = {nearest_shape(clip, limits) for clip in clips}
        pairs = itertools.combinations_with_replacement(sorted(near), 2)
        best = max(overlap(clips, pair, limits).max(1).mean() for pair in pairs)
        got = overlap(clips, choose_buckets(clips, 2, limits), limits).max(1).mean()
        assert got >= 0.95 * best


@pytest.mark.parametrize("limits", [dict(multiple=(1, 64)), dict(multiple=(16, 8)), dict(multiple=(0, 8))])
def test_limits_that_hold_no_shape_are_refused_in_a_line(limits):
    with pytest.raises(InputError, match=r"data\.(multiple|frames)") as caught:
        Limits(8, 32 * 32, **limits)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("step", [0.5, 0.99, 1.0, 2.5])
def test_the_longest_window_is_the_longest_that_fits(step):
    for available in range(20):
        frames = longest_window(available, step)
        assert window_span(frames, step) <= available if frames else available == 0
        assert window_span(frames + 1, step) > available
