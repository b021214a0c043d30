"""Reading by seeking equals decoding everything; writing then reading returns the pictures."""

import itertools
import os
import struct
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vidjax.data.video_reading import ArrayVideo, BrokenClip, Video, probe, read_frames, resize
from vidjax.data.video_writing import Mp4Writer, contact_sheet, finish_growing, save_png, write_mp4
from vidjax.runtime.limits import MAX_FRAMES


def encode(path, frames, codec="libx264", rate=10, pts=None, options=None, **settings):
    """Frames to a file by PyAV alone."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = settings.get("pix_fmt", "yuv420p")
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if pts is not None:
                picture.pts = pts[i]
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))


def decode_all(path):
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


LAYOUTS = {
    "b-frames.mp4": {"options": {"g": "12", "bf": "3"}},
    "one-key-frame.mp4": {"options": {"g": "1000"}},
    "open-gop.mkv": {"options": {"g": "8", "x264-params": "open-gop=1"}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg.mpg": {"codec": "mpeg1video", "rate": 25},
    "stream.ts": {"options": {"g": "10", "bf": "2"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "10", "cpu-used": "8", "deadline": "realtime"}},
    "uneven-time.mp4": {
        "pts": list(itertools.accumulate(1 + (i % 3) for i in range(40))),
        "options": {"g": "9", "bf": "2"},
    },
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_frames_by_number_equal_decoding_all(tmp_path, frames, name):
    path = tmp_path / name
    encode(path, frames, **LAYOUTS[name])
    whole = decode_all(path)
    with Video(path) as video:
        assert video.frames == len(whole)
        for numbers in ([0], [len(whole) - 1], [30, 7, 7, 19], range(11, 27), range(len(whole))):
            np.testing.assert_array_equal(video.read(numbers), whole[list(numbers)])


def test_bytes_read_like_the_file(mp4):
    np.testing.assert_array_equal(read_frames(mp4.read_bytes(), [3, 31]), read_frames(mp4)[[3, 31]])


def test_written_video_comes_back(mp4, frames):
    info = probe(mp4)
    assert (info.frames, info.fps, info.height, info.width) == (40, 10.0, 48, 64)
    error = read_frames(mp4).astype(float) - frames
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 30


@pytest.mark.parametrize("shape", [(3, 33, 47, 3), (3, 32, 47, 1), (1, 5, 6, 3)])
def test_odd_sizes_and_grey_are_written(tmp_path, shape):
    video = np.full(shape, 90, np.uint8)
    write_mp4(tmp_path / "odd.mp4", video, 7.5)
    back = read_frames(tmp_path / "odd.mp4")
    assert back.shape == (shape[0], shape[1] + shape[1] % 2, shape[2] + shape[2] % 2, 3)
    assert abs(back.astype(int) - 90).max() <= 2


def test_writing_in_pieces_equals_writing_at_once(tmp_path, frames, mp4):
    with Mp4Writer(tmp_path / "pieces.mp4", 10.0) as out:
        for piece in np.array_split(frames, 5):
            out.write(piece)
    np.testing.assert_array_equal(read_frames(tmp_path / "pieces.mp4"), read_frames(mp4))


def test_a_growing_file_plays_so_far_and_settles_as_an_ordinary_one(tmp_path, frames):
    video = np.concatenate([np.roll(frames, k, 2) for k in range(5)])  # 200 frames
    with Mp4Writer(tmp_path / "growing.mp4", 10.0, growing=True) as out:
        out.write(video)
        so_far = read_frames((tmp_path / "growing.mp4").read_bytes())
    whole = read_frames(tmp_path / "growing.mp4")
    assert 64 <= len(so_far) < len(whole) == 200
    np.testing.assert_array_equal(so_far, whole[: len(so_far)])
    finish_growing(tmp_path / "growing.mp4", tmp_path / "settled.mp4")
    assert not (tmp_path / "growing.mp4").exists() and probe(tmp_path / "settled.mp4").fps == 10.0
    np.testing.assert_array_equal(read_frames(tmp_path / "settled.mp4"), whole)
    content = (tmp_path / "settled.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat") and b"moof" not in content


def test_scaling_while_reading_is_an_area_mean(tmp_path):
    rng = np.random.default_rng(0)
    smooth = resize(rng.integers(0, 255, (2, 4, 4, 3), dtype=np.uint8), (64, 64))
    encode(tmp_path / "big.mp4", smooth, options={"crf": "0"})
    whole = read_frames(tmp_path / "big.mp4").astype(float)
    mean = whole.reshape(2, 16, 4, 16, 4, 3).mean((2, 4))
    assert (
        np.abs(read_frames(tmp_path / "big.mp4", size=(16, 16)) - mean).mean() < 3
    )  # chroma at half the width would make it 7


def test_numbers_outside_the_clip_are_refused(mp4):
    with Video(mp4) as video, pytest.raises(IndexError):
        video.read([40])


def test_size_that_changes_inside_a_file_is_broken(tmp_path, frames):
    for i, part in enumerate((frames, resize(frames, (24, 32)))):
        encode(tmp_path / f"{i}.ts", part)
    (tmp_path / "both.ts").write_bytes((tmp_path / "0.ts").read_bytes() + (tmp_path / "1.ts").read_bytes())
    with pytest.raises(BrokenClip, match="size changes"):
        read_frames(tmp_path / "both.ts")


def test_a_table_that_promises_more_than_the_file_is_refused_before_room_is_made_for_it(tmp_path, mp4):
    """One size for all samples, and any number of them: libav fills gigabytes for a kilobyte of these."""
    bomb = bytearray(mp4.read_bytes())
    at = bomb.index(b"stsz") + 8
    struct.pack_into(">II", bomb, at, 1, 10**9)
    for file in (bytes(bomb), tmp_path / "bomb.mp4"):
        (tmp_path / "bomb.mp4").write_bytes(bomb)
        with pytest.raises(BrokenClip, match=f"tables promise {10**9} bytes of frames, the file has {len(bomb)}"):
            Video(file)
    struct.pack_into(">II", bomb, at, 1, 40)
    with Video(bytes(bomb)) as video:
        assert video.frames == 40


def test_a_fragment_that_promises_frames_without_listing_them_is_refused(tmp_path, frames):
    with av.open(str(tmp_path / "parts.mp4"), "w", options={"movflags": "frag_keyframe+empty_moov"}) as out:
        stream = out.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        out.mux([p for f in frames for p in stream.encode(av.VideoFrame.from_ndarray(f, format="rgb24"))])
        out.mux(stream.encode(None))
    assert probe(tmp_path / "parts.mp4").frames == 40
    bomb = bytearray((tmp_path / "parts.mp4").read_bytes())
    struct.pack_into(">II", bomb, bomb.index(b"trun") + 4, 0, 10**9)
    with pytest.raises(BrokenClip, match="tables promise"):
        Video(bytes(bomb))


@pytest.mark.parametrize("height, width, said", [(10_000, 10_000, "10000x10000"), (65_000, 65_000, "0x0")])
def test_frames_of_a_size_that_no_camera_has_are_refused(tmp_path, frames, height, width, said):
    """libav itself has no word for those above 2^28 pixels, and says 0x0."""
    encode(tmp_path / "raw.avi", frames[:2], "rawvideo")
    data = (tmp_path / "raw.avi").read_bytes()
    sizes = struct.pack("<II", frames.shape[2], frames.shape[1])
    assert data.count(sizes) == 2  # of the file and of its stream
    with pytest.raises(BrokenClip, match=f"frames of {said} pixels"):
        Video(data.replace(sizes, struct.pack("<II", width, height)))


def test_what_is_held_at_once_is_bounded_and_8k_is_not_hindered(mp4):
    with Video(mp4) as video:
        with pytest.raises(BrokenClip, match="GiB at once, 8 are the most: take fewer frames, or a smaller size"):
            video.read(range(40), (2**15, 2**15))
        assert video.read([3], (4320, 7680)).shape == (1, 4320, 7680, 3)
    with pytest.raises(BrokenClip, match="GiB at once"):
        ArrayVideo(np.zeros((2, 1, 10_000, 3), np.uint8)).read([0, 1], (2048, 20_480_000))


def test_a_list_of_other_files_is_no_video(tmp_path, mp4):
    """Whatever its name ends in: a data set from elsewhere must not reach for other files, or for addresses."""
    (tmp_path / "other.mp4").write_bytes(mp4.read_bytes())
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    for file in (tmp_path / "list.mp4", (tmp_path / "list.mp4").read_bytes()):
        with pytest.raises(BrokenClip, match="not a readable video"):
            Video(file)


def test_a_path_is_never_an_address(tmp_path, mp4, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("other.mp4").write_bytes(mp4.read_bytes())
    for name in ("concat:other.mp4", "pipe:0.mp4", "http:/localhost/a.mp4", "a\0.mp4", "x" * 300 + ".mp4"):
        with pytest.raises(BrokenClip, match="no such file"):
            Video(Path(name))
    Path("concat:other.mp4").write_bytes(mp4.read_bytes())
    assert probe(Path("concat:other.mp4")) == probe(mp4)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(BrokenClip, match="not a file"):
        Video(tmp_path / "pipe.mp4")


def test_pictures_hold_the_pixels(tmp_path, frames):
    save_png(tmp_path / "one.png", frames[0])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "one.png")), frames[0])
    contact_sheet(tmp_path / "sheet.png", [[frames[:2], frames[5:7]], [frames[9:11]]])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    np.testing.assert_array_equal(sheet[:48, :128], np.concatenate(list(frames[:2]), axis=1))
    np.testing.assert_array_equal(sheet[:48, 132:260], np.concatenate(list(frames[5:7]), axis=1))
    np.testing.assert_array_equal(sheet[52:100, :128], np.concatenate(list(frames[9:11]), axis=1))


def test_titles_in_another_encoding_do_not_break_a_clip(tmp_path, frames):
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        out.metadata["title"] = "ABCDEFGH"
        stream = out.add_stream("libx264", rate=8)
        stream.height, stream.width = frames.shape[1:3]
        stream.metadata["title"] = "ABCDEFGH"
        out.mux([p for f in frames[:4] for p in stream.encode(av.VideoFrame.from_ndarray(f, format="rgb24"))])
        out.mux(stream.encode(None))
    data = (tmp_path / "a.mkv").read_bytes()
    assert data.count(b"ABCDEFGH") == 2
    (tmp_path / "a.mkv").write_bytes(data.replace(b"ABCDEFGH", b"\xff\xfe\xe9DEFGH"))
    assert len(read_frames(tmp_path / "a.mkv")) == len(read_frames((tmp_path / "a.mkv").read_bytes())) == 4


# a, b, c, d of a display matrix, and the same for numpy: what a player that heeds it shows
HELD = {
    "upright": ((1, 0, 0, 1), lambda x: x),
    "90 clockwise": ((0, 1, -1, 0), lambda x: np.rot90(x, -1, (1, 2))),
    "180": ((-1, 0, 0, -1), lambda x: np.rot90(x, 2, (1, 2))),
    "90 counter-clockwise": ((0, -1, 1, 0), lambda x: np.rot90(x, 1, (1, 2))),
    "mirrored": ((-1, 0, 0, 1), lambda x: x[:, :, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda x: x[:, ::-1]),
    "transposed": ((0, 1, 1, 0), lambda x: x.swapaxes(1, 2)),
}


@pytest.mark.parametrize("held", HELD)
def test_a_phone_video_is_shown_as_it_was_held(mp4, held):
    """The corner that is stored first, in particular, lies where the matrix of ISO 14496-12 puts it."""
    (a, b, c, d), shown = HELD[held]
    data = bytearray(mp4.read_bytes())
    struct.pack_into(">5i", data, data.index(b"tkhd") + 44, a << 16, b << 16, 0, c << 16, d << 16)
    plain, numbers = read_frames(mp4), [31, 3, 4]
    with Video(bytes(data)) as video:
        assert (video.height, video.width) == shown(plain).shape[1:3]
        np.testing.assert_array_equal(video.read(numbers), shown(plain)[numbers])
        size = (video.height // 2, video.width // 2)
        np.testing.assert_array_equal(video.read([5], size), shown(read_frames(mp4, [5], (24, 32))))


def test_a_million_frames_of_a_pixel_are_refused_before_they_are_walked_through(tmp_path):
    """Raw video of one byte a frame: 32 bytes of libav's memory and 250 of Python's stood for each."""
    encode(tmp_path / "a.mov", np.zeros((3, 1, 1, 3), np.uint8), "rawvideo", pix_fmt="gray")
    head, body = (tmp_path / "a.mov").read_bytes().replace(b"edts", b"free").split(b"moov")
    for count, says in ((MAX_FRAMES + 1, f"more than {MAX_FRAMES} frames"), (10**7, "promise 10000000 frames")):
        moov = bytearray(body)
        struct.pack_into(">I", moov, moov.index(b"stts") + 12, count)
        struct.pack_into(">I", moov, moov.index(b"stsc") + 16, count)
        struct.pack_into(">II", moov, moov.index(b"stsz") + 8, 1, count)
        at = head.index(b"mdat") - 4
        data = head[:at] + struct.pack(">I", 8 + count) + b"mdat" + bytes(count) + head[-4:] + b"moov" + moov
        tracemalloc.start()
        with pytest.raises(BrokenClip, match=says):
            Video(data)
        assert tracemalloc.get_traced_memory()[1] < 10**6
        tracemalloc.stop()
