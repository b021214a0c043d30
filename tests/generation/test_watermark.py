"""The mark is found after compression and resizing, and not where it is not."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from vidjax.data.video_reading import Video, read_frames, resize
from vidjax.data.video_writing import write_mp4
from vidjax.generation import watermark
from vidjax.metrics.reconstruction import psnr

CLIPS = sorted((Path(watermark.__file__).parents[1] / "clips" / "real").glob("*.mp4"))


def clip(path, frames=16):
    return read_frames(path, list(range(frames)))


def coded(video, file, crf):
    write_mp4(file, video, 15.0, crf=crf)
    with Video(file) as video:
        return video.read(range(video.frames))


@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.stem)
def test_the_mark_survives_compression_and_resizing(path, tmp_path):
    video = clip(path)
    marked = watermark.embed(video)
    assert psnr(marked[None], video[None]) > 37
    assert watermark.detect(video) < 4 < watermark.FOUND < watermark.detect(marked)
    for size in ((96, 96), (64, 64), (144, 128)):
        assert watermark.detect(coded(resize(marked, size), tmp_path / "a.mp4", 18)) > watermark.FOUND
    large = watermark.embed(resize(video, (320, 256)))
    assert watermark.detect(coded(large, tmp_path / "a.mp4", 28)) > watermark.FOUND


def test_a_grey_video_can_be_marked():
    video = clip(CLIPS[0])[..., :1]
    assert watermark.detect(watermark.embed(video, 6.0)) > watermark.detect(video) + 3


def test_scores_of_unmarked_videos_are_standard_normal(monkeypatch):
    scores, videos = [], [clip(path) for path in CLIPS[:2]]
    for seed in range(200):
        monkeypatch.setattr(watermark, "SEED", seed)
        scores += [watermark.detect(video) for video in videos]
    assert stats.kstest(scores, "norm").pvalue > 1e-3
    assert np.abs(scores).max() < watermark.FOUND
