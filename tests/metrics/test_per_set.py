"""Features that stream through a network in batches, and figures of sets with their spread over subsets."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from starts import ENV, script

from vidjax.errors import InputError
from vidjax.metrics import feature_networks
from vidjax.metrics.distances import Statistics, frechet, inception_score
from vidjax.metrics.feature_networks import KINDS, FeatureNetwork, Stream
from vidjax.metrics.per_set import SETS, figure
from vidjax.models.i3d import I3D
from vidjax.models.keys import OneKey


class Tiny(nnx.Module):
    """A network of which all is known: the mean colour of every frame."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.array([1.0, 2, 3]))

    def __call__(self, videos):
        return (videos.mean((2, 3)) * self.scale[...],)


def tiny(monkeypatch, batch):
    kind = dataclasses.replace(KINDS["i3d"], model=Tiny, size=6, outputs=lambda model, videos: model(videos))
    monkeypatch.setitem(KINDS, "tiny", kind)
    return FeatureNetwork("tiny", None, batch)


def clips(n, t=3, size=12):
    return np.random.default_rng(0).integers(0, 256, (n, t, size, size, 3), np.uint8)


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_features_come_in_order_whatever_the_batch(batch, monkeypatch):
    stream, videos = Stream(tiny(monkeypatch, batch)), clips(5)
    for video in videos:
        stream.add(video)
    (features,) = stream.features()
    corners = videos / 127.5 - 1  # from 12 to 6 pixels, centres matched, each is the mean of four
    np.testing.assert_allclose(features, corners.mean((2, 3)) * [1, 2, 3], atol=1e-5)


def test_grey_videos_are_seen_in_three_channels(monkeypatch):
    stream, videos = Stream(tiny(monkeypatch, 2)), clips(3)[..., :1]
    for video in videos:
        stream.add(video)
    np.testing.assert_allclose(stream.features()[0][..., 1], 2 * (videos / 127.5 - 1).mean((2, 3, 4)), atol=1e-5)


def test_videos_of_other_lengths_are_refused(monkeypatch):
    stream = Stream(tiny(monkeypatch, 2))
    stream.add(clips(1)[0])
    with pytest.raises(InputError, match="it has 4 frames, 3 are wanted"):
        stream.add(clips(1, t=4)[0])
    with pytest.raises(InputError, match="it has 3 frames, 16 are wanted"):
        Stream(tiny(monkeypatch, 2), 16).add(clips(1)[0])


def test_frames_too_few_for_i3d_are_refused_before_it_is_compiled():
    model = nnx.eval_shape(lambda: I3D(rngs=OneKey()))
    with pytest.raises(InputError, match="9 frames or more, these have 8"):
        model(jnp.zeros((1, 8, 32, 32, 3)))


def test_many_devices_see_what_one_sees(tmp_path):
    """Five videos over four devices, in batches that they do not fill; a small network of random weights."""
    code = (
        "import sys, numpy as np; from flax import nnx; from vidjax.metrics import feature_networks as f; "
        "show = lambda model, videos: (model(videos.mean((2, 3))),); make = lambda rngs: nnx.Linear(3, 7, rngs=rngs); "
        "f.KINDS['i3d'] = f.Kind(make, 6, True, lambda x: x / 255, show, [], '', ''); "
        "stream = f.Stream(f.FeatureNetwork('i3d', None, 2)); "
        "clips = np.random.default_rng(0).integers(0, 256, (5, 9, 8, 8, 3), np.uint8); "
        "[stream.add(clip) for clip in clips]; np.save(sys.argv[1], stream.features()[0]); print(stream.network.batch)"
    )
    found = []
    for devices in (1, 4):
        env = ENV | {"XLA_FLAGS": f"{ENV['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"}
        file = tmp_path / f"{devices}.npy"
        done = script(code, file, env=env)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) == max(2, devices)
        found.append(np.load(file))
    assert found[0].shape == (5, 9, 7) and found[0].std() > 0.01
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_a_figure_is_of_all_features_and_its_subsets_are_of_whole_videos():
    rng = np.random.default_rng(0)
    ours, theirs = rng.standard_normal((8, 2, 5)), rng.standard_normal((9, 2, 5)) + 1
    made = figure(SETS["fid"], [ours, theirs], 6, None)
    assert made["value"] == frechet(Statistics.of(ours.reshape(-1, 5)), Statistics.of(theirs.reshape(-1, 5)))
    assert made["subsets"]["count"] == 6 and made["subsets"]["videos"] == 4
    assert made["subsets"]["std"] > 0
    # Frames of one video that are all alike stay together: drawn apart, their score would fall below the number of
    # videos. The score of n certain, different videos is n.
    certain = 100 * np.eye(8)[:, None].repeat(3, 1)
    made = figure(SETS["is"], [certain], 5, 3)
    assert made["value"] == pytest.approx(8) == inception_score(certain.reshape(-1, 8))
    assert made["subsets"] == {"count": 5, "videos": 3, "mean": pytest.approx(3), "std": pytest.approx(0, abs=1e-9)}


def test_subsets_of_everything_are_everything():
    a, b = np.random.default_rng(0).standard_normal((2, 6, 1, 3))
    made = figure(SETS["kvd"], [a, b], 3, 6)
    assert made["subsets"]["mean"] == pytest.approx(made["value"]) and made["subsets"]["std"] < 1e-12


def test_small_sets_have_no_subsets_and_smaller_ones_no_value():
    a = np.random.default_rng(0).standard_normal((3, 1, 4))
    assert figure(SETS["fvd"], [a, a + 1], 10, None) == {"value": pytest.approx(4)}
    with pytest.raises(InputError, match="at least two videos"):
        figure(SETS["fvd"], [a[:1], a], 10, None)


@pytest.mark.parametrize(
    "name, says",
    [("missing.safetensors", "there is no file"), ("rgb_imagenet.pt", "python -m vidjax.convert"), ("cut", "cut off")],
)
def test_weights_that_cannot_be_read(name, says, tmp_path):
    whole = tmp_path / "whole.safetensors"
    save_file({"fc.weight": np.zeros((1008, 2048), np.float32)}, whole)
    (tmp_path / "rgb_imagenet.pt").write_bytes(b"PK")
    (tmp_path / "cut").write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(InputError, match=says) as raised:
        FeatureNetwork("i3d", tmp_path / name)
    assert "\n" not in str(raised.value)


def test_weights_of_another_network_are_named_key_by_key(tmp_path):
    save_file({"fc.weight": np.zeros((1008, 2048), np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"no key for parameter Conv3d_1a_7x7\.bn\.bias.*and \d+ more"):
        FeatureNetwork("i3d", tmp_path / "other.safetensors")


def test_the_digest_is_that_of_the_file(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")  # FIPS 180-4's own example
    assert feature_networks.digest(tmp_path / "file").startswith("ba7816bf8f01cfea414140de5dae2223")
