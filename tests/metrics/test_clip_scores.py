"""CLIP scores on embeddings whose cosines are known, and what is said about folders that are not whole."""

import json
import shutil

import numpy as np
import pytest

from vidjax.errors import InputError
from vidjax.metrics.clip_scores import ClipScorer, frame_consistency, shown_to_clip, text_alignment

RNG = np.random.default_rng(0)


def directions(*degrees):
    angle = np.deg2rad(np.array(degrees, np.float64))
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def test_consistency_of_embeddings_on_a_circle():
    frames = directions(0, 60, 120)
    assert frame_consistency(frames) == pytest.approx(50)  # cos 60
    assert frame_consistency(frames, "all") == pytest.approx(100 * (0.5 + 0.5 - 0.5) / 3)
    with pytest.raises(InputError, match="two or more"):
        frame_consistency(frames[:1])


def test_alignment_of_embeddings_on_a_circle():
    assert text_alignment(directions(-60, 0, 60), directions(0)[0]) == pytest.approx(100 * 2 / 3)


def test_of_a_picture_in_its_size_nothing_is_changed_and_of_a_long_one_the_middle_is_seen():
    video = RNG.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(shown_to_clip(video, 16), video)
    padded = np.pad(video, ((0, 0), (0, 0), (7, 7), (0, 0)))
    np.testing.assert_array_equal(shown_to_clip(padded, 16), video)


def test_a_scorer_gives_stills_100_and_does_not_depend_on_the_batch(clip_folder):
    scorer = ClipScorer(clip_folder, batch=4)
    video = np.stack([RNG.integers(40 * i, 41 * i + 1, (20, 24, 3), np.uint8) for i in range(6)])[1:]
    assert scorer.frame_consistency(np.repeat(video[:1], 5, 0)) == pytest.approx(100, abs=1e-4)
    assert scorer.frame_consistency(video) < 99.9  # they grow lighter
    alone = np.concatenate([scorer.embed_frames(frame[None]) for frame in video])
    np.testing.assert_allclose(scorer.embed_frames(video), alone, atol=1e-6)
    per_frame = [scorer.text_alignment(frame[None], "a cat") for frame in video]
    assert scorer.text_alignment(video, "a cat") == pytest.approx(np.mean(per_frame), abs=1e-4)
    assert scorer.text_alignment(video, "a cat") != pytest.approx(scorer.text_alignment(video, "the sea"), abs=1e-3)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "preprocessor_config.json", "vocab.json"])
def test_the_missing_file_is_named(missing, clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    (folder / missing).unlink()
    with pytest.raises(InputError, match=missing):
        ClipScorer(folder)


def test_folders_that_are_none_or_of_another_model(clip_folder, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        ClipScorer(tmp_path / "nothing")
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["SiglipModel"]}))
    with pytest.raises(InputError, match="SiglipModel"):
        ClipScorer(folder)
    (folder / "config.json").write_text(json.dumps({**config, "projection_dim": 7}))
    with pytest.raises(InputError, match="text_projection"):
        ClipScorer(folder)
