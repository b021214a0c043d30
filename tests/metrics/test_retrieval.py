"""Retrieval and its companions on clips whose distances are known."""

import numpy as np
import pytest

from vidjax.metrics.retrieval import mean_window_psnr, motion, motion_ratio, nearest, retrieval, sample_psnr

RNG = np.random.default_rng(0)
CLIPS = [RNG.integers(20, 200, (3, 4, 8, 8, 3), dtype=np.uint8) for _ in range(4)]  # 4 clips of 3 windows


def db(difference: float) -> float:
    return 20 * np.log10(255 / difference)


def test_nearest_finds_the_window_a_sample_was_made_from():
    for clip, windows in enumerate(CLIPS):
        found, value = nearest(windows[1] + np.uint8(2), CLIPS)
        assert found == clip and value == pytest.approx(db(2), rel=1e-4)


def test_retrieval_counts_captions_all_of_whose_samples_are_right():
    samples = [windows[:2] + np.uint8(3) for windows in CLIPS]
    assert retrieval(samples, CLIPS) == 4
    samples[2] = np.stack([samples[2][0], samples[1][0]])  # one of its two samples is another clip
    assert retrieval(samples, CLIPS) == 3


def test_retrieval_follows_a_permutation_of_clips_and_windows():
    samples = [windows[:1] + np.uint8(3) for windows in CLIPS]
    samples[0], samples[1] = samples[1], samples[0]
    order = [2, 0, 3, 1]
    permuted = [CLIPS[i][::-1] for i in order]
    assert retrieval([samples[i] for i in order], permuted) == retrieval(samples, CLIPS) == 2
    assert sample_psnr([samples[i] for i in order], permuted) == pytest.approx(sample_psnr(samples, CLIPS))


def test_sample_psnr_compares_with_the_own_clip_alone():
    samples = [windows[:1] + np.uint8(shift) for windows, shift in zip(CLIPS, (1, 2, 5, 10))]
    assert sample_psnr(samples, CLIPS) == pytest.approx(np.mean([db(1), db(2), db(5), db(10)]), rel=1e-4)
    swapped = [samples[1], samples[0], *samples[2:]]
    own = nearest(samples[1][0], CLIPS[:1])[1], nearest(samples[0][0], CLIPS[1:2])[1]
    assert sample_psnr(swapped, CLIPS) == pytest.approx(np.mean([*own, db(5), db(10)]), rel=1e-4)


def test_mean_window_of_a_shift_both_ways():
    """Training windows 7 below and 9 above the held-out one: their mean is 1 above it."""
    heldout = [windows[:1] for windows in CLIPS]
    train = [np.concatenate([windows[:1] - np.uint8(7), windows[:1] + np.uint8(9)]) for windows in CLIPS]
    assert mean_window_psnr(train, heldout) == pytest.approx(db(1), rel=1e-4)


def test_motion_of_ramps():
    ramp = lambda speed: np.broadcast_to((speed * np.arange(4, dtype=np.uint8)).reshape(1, 4, 1, 1, 1), (2, 4, 8, 8, 3))
    assert motion(ramp(3)) == 3 and motion(ramp(3)[:, ::-1]) == 3
    assert motion_ratio([ramp(2), ramp(4)], [ramp(8), ramp(4)]) == pytest.approx(0.5)
    assert np.isnan(motion_ratio([ramp(2)], [ramp(0)]))
