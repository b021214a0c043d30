"""Flow metrics on textures moved by known amounts, and on flow fields in closed form."""

import sys

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from vidjax.errors import InputError
from vidjax.metrics.flow import flow, flow_smoothness, mean_flow, motion_diversity, motion_magnitude

RNG = np.random.default_rng(0)
NOISE = gaussian_filter(RNG.standard_normal((160, 160)), 1.5)
TEXTURE = 255 * (NOISE - NOISE.min()) / np.ptp(NOISE)


def moved(offsets):
    """The texture's middle, 64 x 64, with the content moved by each (down, right) of `offsets` [t, 2]."""
    frames = [shift(TEXTURE, offset)[48:112, 48:112] for offset in offsets]
    return np.repeat(np.clip(frames, 0, 255).round().astype(np.uint8)[..., None], 3, -1)


def steadily(velocity, frames=5):
    return moved(np.arange(frames)[:, None] * np.array(velocity))


@pytest.mark.parametrize("velocity", [(1, 0), (0, -2), (2, -1), (0.5, 0.25), (3, 2)])
def test_flow_is_the_velocity_of_a_translation(velocity):
    found = flow(steadily(velocity, 3))
    assert np.linalg.norm(found[:, 6:-6, 6:-6] - np.array(velocity), axis=-1).max() < 0.2
    assert motion_magnitude(found) == pytest.approx(np.hypot(*velocity), abs=0.1)
    np.testing.assert_allclose(mean_flow(found).mean((0, 1)), velocity, atol=0.1)


def test_grey_videos_move_as_their_colour_does():
    video = steadily((1, 2), 3)
    np.testing.assert_allclose(flow(video[..., :1]), flow(video), atol=1e-5)


def test_steady_motion_is_smooth_and_jitter_is_not():
    steady = flow(steadily((1, 2), 8))
    jitter = flow(moved(np.arange(8)[:, None] * np.array((1, 2)) + np.array([[0, 0], [1, -1]] * 4)))
    assert flow_smoothness(steady) < 0.1
    # The velocity alternates by +-2 (1, -1) from step to step: second differences of length 4 |(1, -1)|.
    assert flow_smoothness(jitter) == pytest.approx(4 * np.sqrt(2), rel=0.1)


def test_smoothness_in_closed_form():
    """Velocity s^2 (3, 4): its second difference is (6, 8) at every step; a constant acceleration has none."""
    steps = np.arange(6.0).reshape(-1, 1, 1, 1)
    direction = np.broadcast_to(np.array([3.0, 4.0]), (1, 5, 5, 2))
    assert flow_smoothness(steps**2 * direction) == pytest.approx(10)
    assert flow_smoothness(steps * direction) == pytest.approx(0, abs=1e-12)
    with pytest.raises(InputError, match="this video has 3"):
        flow_smoothness(steps[:2] * direction)


def test_diversity_of_equal_and_of_opposite_motion():
    right, left = mean_flow(flow(steadily((0, 2)))), mean_flow(flow(steadily((0, -2))))
    assert motion_diversity([right, right]) == 0
    assert motion_diversity([right, left]) == pytest.approx(4, abs=0.2)
    # Of three pairs, one is of equals.
    assert motion_diversity([right, left, right]) == pytest.approx(2 / 3 * motion_diversity([right, left]))


def test_what_cannot_be_compared_is_refused():
    field = np.zeros((4, 4, 2))
    with pytest.raises(InputError, match="there is one"):
        motion_diversity([field])
    with pytest.raises(InputError, match="4x4, 4x5"):
        motion_diversity([field, np.zeros((4, 5, 2))])
    with pytest.raises(InputError, match="two frames"):
        flow(steadily((0, 0), 1))


def test_without_opencv_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"vidjax\[metrics\]"):
        flow(steadily((0, 0), 2))
