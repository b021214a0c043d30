"""Data sets as they are published are found whole, with their classes, captions and splits."""

import os
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from vidjax.data.pictures import Pictures
from vidjax.data.pipeline import DataConfig, make_dataset
from vidjax.data.readers import make_source
from vidjax.data.video_reading import BrokenClip, read_frames
from vidjax.errors import InputError


def pictures(folder, frames, names):
    folder.mkdir(parents=True)
    for name, frame in zip(names, frames):
        Image.fromarray(frame).save(folder / name)


def copy(mp4, *files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(mp4.read_bytes())


def test_folders_of_frames_are_clips_in_natural_order(tmp_path, frames):
    names = [f"f_{i}.png" for i in range(12)]  # f_10 follows f_9, not f_1
    for split, clips in (("train", ("a/a_1", "a/a_2", "b/b_1")), ("test", ("c/c_1",))):
        for clip in clips:
            pictures(tmp_path / f"sky_{split}" / clip, frames[:12], names)
    (tmp_path / "sky_train" / "a" / "a_2.txt").write_text("clouds")
    source = make_source("frames", str(tmp_path / "sky_{split}"), "train")
    assert [source[i].text for i in range(len(source))] == ["", "clouds", ""] and source.num_classes == 0
    assert len(make_source("frames", str(tmp_path / "sky_{split}"), "test")) == 1
    with source[0].open() as clip:
        assert (clip.frames, clip.height, clip.width, clip.fps) == (12, *frames.shape[1:3], 25.0)
        np.testing.assert_array_equal(clip.read([11, 2, 2]), frames[[11, 2, 2]])
    config = DataConfig(source="frames", path=str(tmp_path / "sky_{split}"), frames=12, size=frames.shape[1:3])
    batch = next(make_dataset(config, seed=0).batches(3))
    np.testing.assert_array_equal(batch["video"], np.stack([frames[:12]] * 3))


def test_pictures_that_cannot_be_frames_are_named(tmp_path, frames):
    pictures(tmp_path / "clip", frames[:3], ["0.png", "1.png", "2.png"])
    clip = make_source("frames", str(tmp_path), "")[0]
    (tmp_path / "clip" / "1.png").write_bytes(b"\x89PNG")
    with pytest.raises(BrokenClip, match=r"1\.png is not a readable picture"):
        clip.open().read(range(3))
    Image.fromarray(frames[1, :20]).save(tmp_path / "clip" / "1.png")
    with pytest.raises(BrokenClip, match="size changes from 64x48 to 64x20"):
        clip.open().read(range(3))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no folders of pictures"):
        make_source("frames", str(tmp_path / "empty"), "")


def png(path, width, height):
    """A picture of zeros, however large, in a file that is a thousandth of it."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width // 8 + 1)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def test_a_picture_too_large_for_memory_is_not_decoded(tmp_path):
    png(tmp_path / "0.png", 9000, 9000)
    tracemalloc.start()
    with pytest.raises(BrokenClip, match="frames of 9000x9000 pixels"):
        Pictures(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    png(tmp_path / "0.png", 40, 30)
    clip = Pictures(tmp_path)
    assert clip.read([0]).shape == (1, 30, 40, 3)
    with pytest.raises(BrokenClip, match="GiB at once"):
        clip.read([0] * 10, (2**15, 2**15))


def test_a_picture_is_read_as_a_picture_only(tmp_path):
    """Not as a program in PostScript, for which Pillow would start an interpreter, nor from a pipe."""
    (tmp_path / "0.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with Image.open(tmp_path / "0.png") as image:
        assert image.format == "EPS"
    with pytest.raises(BrokenClip, match=r"0\.png is not a readable picture"):
        Pictures(tmp_path)
    (tmp_path / "0.png").unlink()
    os.mkfifo(tmp_path / "0.png")
    with pytest.raises(BrokenClip, match=r"0\.png is not a file"):
        Pictures(tmp_path)


def told(source):
    return [(source[i].text, source[i].label) for i in range(len(source))]


LISTS = {
    "classInd.txt": "1 Archery\n2 BabyCrawling\n3 YoYo\n",
    "trainlist01.txt": "Archery/v_Archery_g08_c01.avi 1\nYoYo/v_YoYo_g08_c01.avi 3\n",
    "testlist01.txt": "YoYo/v_YoYo_g01_c01.avi\nBabyCrawling/v_BabyCrawling_g01_c01.avi\n",
    "trainlist02.txt": "YoYo/v_YoYo_g01_c01.avi 3\r\n",
}


def ucf101(root, mp4, beside):
    lists = root / "ucfTrainTestlist" if beside else root / "UCF-101" / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    for name, text in LISTS.items():
        (lists / name).write_text(text)
    for clip in ("Archery/v_Archery_g08_c01", "YoYo/v_YoYo_g08_c01", "YoYo/v_YoYo_g01_c01"):
        copy(mp4, root / "UCF-101" / f"{clip}.avi")


@pytest.mark.parametrize("beside", [True, False])
def test_ucf101_has_its_official_splits(tmp_path, mp4, beside):
    ucf101(tmp_path, mp4, beside)
    for path in (tmp_path, tmp_path / "UCF-101"):
        found = lambda split, path=path: told(make_source("ucf101", str(path), split))
        assert found("train") == found("train01") == [("archery", 0), ("yo yo", 2)]
        assert found("test") == [("yo yo", 2), ("baby crawling", 1)]
        assert found("train02") == [("yo yo", 2)] and len(found("all")) == 3
    source = make_source("ucf101", str(tmp_path), "test")
    assert source.num_classes == 3
    with source[0].open() as video:
        np.testing.assert_array_equal(video.read([0, 39]), read_frames(mp4, [0, 39]))
    with pytest.raises(BrokenClip, match="no such file"):
        source[1].open()
    with pytest.raises(InputError, match="choose all or one of test01, train01, train02"):
        make_source("ucf101", str(tmp_path), "val")
    copy(mp4, tmp_path / "UCF-101" / "Knitting" / "v_Knitting_g01_c01.avi")
    with pytest.raises(InputError, match=r"Knitting/.* is of no class in .*classInd.txt"):
        make_source("ucf101", str(tmp_path), "all")


def test_ucf101_without_lists_is_refused(tmp_path):
    with pytest.raises(InputError, match="no ucfTrainTestlist in"):
        make_source("ucf101", str(tmp_path), "train")


def test_a_pattern_reads_class_and_caption_from_the_path(tmp_path, mp4, frames):
    for who in ("M003", "W009"):
        for clip in ("front/angry/level_1/001", "front/sad/level_3/002", "top/sad/level_1/003"):
            copy(mp4, tmp_path / who / "video" / f"{clip}.mp4")
    (tmp_path / "M003/video/front/angry/level_1/notes.txt").write_text("not a clip")
    (tmp_path / "W009/video/front/sad/level_3/002.txt").write_text("she is sad")
    source = make_source("pattern", f"{tmp_path}/*/video/front/{{class}}/{{level}}/*", "")
    texts = ["angry, level 1", "sad, level 3", "angry, level 1", "she is sad"]
    assert told(source) == list(zip(texts, (0, 1, 0, 1)))
    assert source.num_classes == 2
    views = make_source("pattern", f"{tmp_path}/M003/video/{{view}}/*/*/*.mp4", "")
    assert told(views) == [("front", -1), ("front", -1), ("top", -1)] and views.num_classes == 0
    pictures(tmp_path / "stills" / "run" / "one", frames[:5], [f"{i}.png" for i in range(5)])
    with make_source("pattern", f"{tmp_path}/stills/{{class}}/*", "")[0].open() as clip:
        np.testing.assert_array_equal(clip.read(range(5)), frames[:5])
    for path, says in ((f"{tmp_path}/x/{{class}}/*", "no videos at"), ("{a}/{a}", "names a part twice")):
        with pytest.raises(InputError, match=says):
            make_source("pattern", path, "")
