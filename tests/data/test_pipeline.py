"""A batch depends on (seed, step) alone, and a broken file costs one warning, a flag and a fixed substitute."""

import itertools
import logging
import subprocess
import sys

import av
import numpy as np
import pytest
from five_shapes import write_clips

from vidjax.data.order import shuffle
from vidjax.data.pipeline import DataConfig, make_dataset
from vidjax.data.shapes import draw
from vidjax.data.video_reading import read_frames
from vidjax.data.video_writing import write_mp4
from vidjax.errors import InputError

FULL = DataConfig(size=32, frames=4, heldout=16, crop="random", flip=True, images=2, cache=True)


def letters(text):
    return np.frombuffer(text[:12].encode().ljust(12), np.uint8)


def dataset(config=FULL, seed=3):
    return make_dataset(config, seed=seed, tokenize=letters)


def take(iterator, n):
    return list(itertools.islice(iterator, n))


def assert_same(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_starting_in_the_middle_equals_skipping():
    assert_same(take(dataset().batches(4, start_step=3), 3), take(dataset().batches(4), 6)[3:])


def test_two_processes_together_equal_one():
    parts = [take(dataset().batches(4, 1, p, 2), 3) for p in range(2)]
    together = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*parts)]
    assert_same(together, take(dataset().batches(4, 1), 3))


def test_workers_and_cache_change_nothing():
    plain = take(dataset(DataConfig(size=32, frames=4, heldout=16, flip=True)).batches(8), 3)
    for changed in ({"workers": 2}, {"cache": True}, {"workers": 3, "cache": True, "prefetch": 1}):
        config = DataConfig(size=32, frames=4, heldout=16, flip=True, **changed)
        assert_same(take(dataset(config).batches(8), 3), plain)


def test_every_batch_of_all_clips_holds_each_once_in_changing_order():
    orders = [tuple(batch["index"]) for batch in take(dataset().batches(8), 4)]
    assert all(sorted(order) == list(range(8)) for order in orders) and len(set(orders)) == 4
    assert orders != [tuple(batch["index"]) for batch in take(dataset(seed=4).batches(8), 4)]


@pytest.mark.parametrize("size", [5, 70_000])
def test_epochs_are_permutations_that_differ(size):
    shuffled = shuffle(range(size), 1)
    first, second = ([int(shuffled[e * size + i]) for i in range(size)] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(size)) and first != second


def test_windows_show_the_frames_and_the_caption_of_their_clip():
    data = dataset(DataConfig(size=96, frames=4, stride=2, heldout=16))
    for batch in take(data.batches(4), 2):
        for k, index in enumerate(batch["index"]):
            clip = read_frames(data.clips[index])[:-16]
            places = [s for s in range(len(clip) - 6) if np.array_equal(clip[s : s + 7 : 2], batch["video"][k])]
            assert places
            np.testing.assert_array_equal(batch["tokens"][k], letters(data.texts[index]))


def test_target_rate_skips_frames():
    """15 fps clips at 5 fps: every third frame; fixed window at the start."""
    data = dataset(DataConfig(size=96, frames=4, fps=5.0, window="start"))
    batch = next(data.batches(2))
    for video, index in zip(batch["video"], batch["index"]):
        np.testing.assert_array_equal(video, read_frames(data.clips[index], [0, 3, 6, 9]))


def test_flip_mirrors_about_half():
    plain = take(dataset(DataConfig(size=32, frames=2, cache=True)).batches(8), 8)
    flipped = take(dataset(DataConfig(size=32, frames=2, cache=True, flip=True)).batches(8), 8)
    mirrored = 0
    for a, b in zip(plain, flipped):
        for x, y in zip(a["video"], b["video"]):
            assert np.array_equal(x, y) or np.array_equal(x[:, :, ::-1], y)
            mirrored += not np.array_equal(x, y)
    assert 16 <= mirrored <= 48


def test_evaluation_windows_are_apart_from_training():
    data = dataset(DataConfig(size=96, frames=8, heldout=16))
    for clip, train, held in zip(data.clips, data.windows("train", 2), data.windows("heldout")):
        whole = read_frames(clip)
        np.testing.assert_array_equal(held, np.stack([whole[-16:-8], whole[-8:]]))
        np.testing.assert_array_equal(train, np.stack([whole[:8], whole[-24:-16]]))


def test_images_are_clips_of_one_frame():
    data = make_dataset(DataConfig(source="shapes", frames=1, size=(32, 48), images=1), seed=0)
    batch = next(data.batches(48))
    assert batch["video"].shape == (48, 1, 32, 48, 3) and batch["images"].shape == (48, 1, 32, 48, 3)
    assert data.num_classes == 3 and sorted(batch["label"]) == [0] * 16 + [1] * 16 + [2] * 16


def _audio_only(path):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def _two_sizes(path):
    parts = []
    for size in (32, 64):
        part = path.with_suffix(".ts")
        with av.open(str(part), "w") as out:
            stream = out.add_stream("libx264", rate=8)
            stream.height = stream.width = size
            for frame in draw("circle", "red", "up", frames=6, size=size):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            out.mux(stream.encode(None))
        parts.append(part.read_bytes())
        part.unlink()
    path.write_bytes(b"".join(parts))


def _cut(path, header_first):
    """An mp4 that ends in the middle; its table of frames comes first (so it opens) or last (so it does not)."""
    with av.open(str(path), "w", options={"movflags": "faststart"} if header_first else {}) as out:
        stream = out.add_stream("libx264", rate=8, options={"crf": "10"})
        stream.height = stream.width = 64
        for frame in draw("circle", "red", "up", frames=32, size=64):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])


BROKEN = {
    "missing": (lambda path: None, "no such file"),
    "truncated": (lambda path: _cut(path, False), "not a readable video"),
    "truncated_after_header": (lambda path: _cut(path, True), "truncated"),
    "zero_bytes": (lambda path: path.write_bytes(b""), "zero bytes"),
    "audio_only": (_audio_only, "no video stream"),
    "too_short": (lambda path: write_mp4(path, draw("circle", "red", "up", frames=3), 8), "too short"),
    "variable_size": (_two_sizes, "size changes"),
    "not_a_video": (lambda path: path.write_bytes(b"<html>404 not found</html>" * 50), "not a readable video"),
}


def make_folder(root, broken):
    """Three good clips around the broken one, which is number 1."""
    (root / "p").mkdir()
    for name, colour in (("0", "red"), ("2", "blue"), ("3", "green")):
        write_mp4(root / "p" / f"{name}.mp4", draw("square", colour, "left", frames=12), 8)
    broken(root / "p" / "1.mp4")
    (root / "clips.csv").write_text("videoid,page_dir,name\n" + "".join(f"{i},p,clip {i}\n" for i in range(4)))
    return str(root)


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_file_gives_way_to_the_next(tmp_path, caplog, kind):
    make, reason = BROKEN[kind]
    config = DataConfig(path=make_folder(tmp_path, make), size=32, frames=8)
    data = make_dataset(config, seed=0)
    with caplog.at_level(logging.WARNING):
        batches = take(data.batches(4), 3)
    for batch in batches:
        assert sorted(batch["index"]) == [0, 2, 2, 3]
        assert batch["substituted"].sum() == 1 and batch["index"][batch["substituted"]] == 2
    warnings = [r.getMessage() for r in caplog.records]
    assert len(warnings) == 1 and "1.mp4" in warnings[0] and reason in warnings[0]
    assert list(data.broken) == [1]
    assert_same(take(make_dataset(config, seed=0).batches(4, 2), 1), batches[2:])


def test_broken_file_has_no_evaluation_windows(tmp_path):
    data = make_dataset(DataConfig(path=make_folder(tmp_path, BROKEN["zero_bytes"][0]), size=32, frames=4), seed=0)
    assert [len(w) for w in data.windows("train")] == [3, 0, 3, 3]


def test_nothing_readable_is_said_at_once(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "b.mp4").write_bytes(b"no")
    with pytest.raises(InputError, match=r"none of the 2 clips.*a\.mp4: zero bytes"):
        make_dataset(DataConfig(source="folder", path=str(tmp_path)), seed=0)


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(InputError, match=r"8 clips are too few for one batch of 9: set train\.batch_size=8"):
        dataset().batches(9)
    with pytest.raises(InputError, match=r"train\.batch_size=4 does not divide over 3 processes"):
        dataset().batches(4, process_count=3)


@pytest.mark.parametrize(
    "wanted, says",
    [
        (
            dict(frames=24, stride=2, heldout=12),
            ["12 frames, 0 of them", "needs 47", "frames=24", "stride=2", "heldout=12"],
        ),
        (dict(frames=8, heldout=5), ["12 frames, 7 of them", "needs 8", "frames=8", "stride=1", "heldout=5"]),
        (dict(frames=8, fps=2), ["12 frames; a window needs 29", "data.frames=8", "data.fps=2 from 8"]),
        (dict(frames=1, heldout=12, images=1), ["12 frames, 0 of them", "heldout=12"]),
    ],
)
def test_a_clip_that_is_too_short_names_every_key_that_makes_it_so(tmp_path, wanted, says):
    write_mp4(tmp_path / "a.mp4", draw("square", "red", "left", frames=12), 8)
    with pytest.raises(InputError) as caught:
        make_dataset(DataConfig(video=str(tmp_path / "a.mp4"), size=32, **wanted), seed=0)
    for part in (*says, "none of the 1 clips", "lower data.frames", "data.heldout"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"source": "webvids"}, "did you mean 'webvid'"),
        ({"window": "middle"}, "choose from random, start, center"),
        ({"size": 0}, "data.size=0"),
        ({"stride": 0}, "data.stride=0: must be at least 1"),
        ({"fps": -1.0}, "data.fps=-1.0"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(InputError, match=message):
        DataConfig(**wrong)


def test_importing_the_pipeline_imports_no_reader():
    code = "import sys, vidjax.data.pipeline; print({'av', 'tensorflow', 'tensorflow_datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_names_and_captions_are_looked_up_when_they_are_asked_for():
    data = dataset()
    assert list(data.texts) == data.texts[:] == [data.texts[i] for i in range(8)] and len(set(data.texts)) == 8
    assert data.texts[-1] == data.texts[7] and data.clips[2:4] == [data.clips[2], data.clips[3]]
    with pytest.raises(IndexError):
        data.texts[8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips of five shapes."""
    return str(write_clips(tmp_path_factory.mktemp("clips")))


def bucketed(folder, **more):
    options = dict(source="folder", path=folder, frames=8, size=24, buckets=5, multiple=(1, 4), **more)
    return dataset(DataConfig(**options))


def test_every_batch_is_of_one_shape_and_all_clips_come_alike(folder):
    data = bucketed(folder, images=1)
    seen, steps = {}, sum(count for _, count in data.buckets) // 2 * 3
    for batch in take(data.batches(2), steps):
        assert batch["images"].shape[2:] == batch["video"].shape[2:]
        for index in batch["index"]:
            seen.setdefault(int(index), []).append(batch["video"].shape[1:4])
    assert sorted(seen) == list(range(10)) and all(len(set(shapes)) == 1 for shapes in seen.values())
    assert {shape for shapes in seen.values() for shape in shapes} == {shape for shape, _ in data.buckets}
    assert all(2 <= len(shapes) <= 4 for shapes in seen.values())  # three epochs


def test_buckets_start_anywhere_and_divide_over_processes(folder):
    want = take(bucketed(folder).batches(4), 9)
    assert_same(take(bucketed(folder, workers=2).batches(4, start_step=5), 4), want[5:])
    parts = [take(bucketed(folder).batches(4, 3, p, 2), 6) for p in range(2)]
    assert_same([{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*parts)], want[3:])


def test_held_out_windows_are_cut_to_the_bucket_of_their_clip(folder):
    data = bucketed(folder, heldout=4, window="start")
    assert list(data.broken) == [] and {t for (t, _, _), _ in data.buckets} == {1, 8}
    batches = data.held_out(99)
    assert sorted(batch["video"].shape[1:4] for batch in batches) == [s for s, _ in data.buckets if s[0] == 1]
    (first,) = batches
    for video in first["video"]:
        (own,) = [i for i in (4, 9) if np.array_equal(video, data.windows("heldout", 1, [i], as_trained=True)[0][0])]
        assert own


def test_a_clip_that_breaks_gives_way_to_one_that_can_be_cut_to_its_bucket(folder):
    data = bucketed(folder)
    for index in (4, 9):  # the two short ones
        data.broken[index] = "gone"
    (bucket,) = [k for k, (shape, _) in enumerate(data.buckets) if shape[0] == 5]
    batch = next(data.batches(2, bucket=bucket))
    assert batch["substituted"].all() and batch["video"].shape[1] == 5


def test_folders_are_mixed_in_their_weights(tmp_path):
    for name, count in (("a", 1), ("b", 4)):
        for k in range(count):
            write_mp4(tmp_path / name / f"{k}.mp4", draw("square", "red", "left", frames=4, size=16), 8)
    path = f"{tmp_path}/a;{tmp_path}/b"
    options = dict(source="folder", path=path, frames=2, size=16)
    mixed = lambda **more: dataset(DataConfig(**options, **more))
    data = mixed(weights=(3.0, 1.0))
    seen = np.concatenate([batch["index"] for batch in take(data.batches(4), 16)])
    assert (seen == 0).sum() == 48 and sorted(seen[seen > 0]) == sorted([1, 2, 3, 4] * 4)
    assert_same(take(mixed(weights=(3.0, 1.0)).batches(4, 7), 3), take(data.batches(4), 10)[7:])
    alike = np.concatenate([batch["index"] for batch in take(mixed().batches(5), 3)])
    assert sorted(alike) == sorted([0, 1, 2, 3, 4] * 3)
    assert [data.item(i).name.split("/")[-2] for i in range(5)] == ["a", "b", "b", "b", "b"]


def test_classes_of_several_folders_are_told_apart():
    data = dataset(DataConfig(source="shapes;shapes", path=";", frames=2, size=16))
    assert len(data) == 96 and data.num_classes == 6
    assert {data.item(i).label for i in range(48)} == {0, 1, 2}
    assert {data.item(i).label for i in range(48, 96)} == {3, 4, 5}


def test_a_caption_is_drawn_anew_every_epoch_between_its_trigger_words(folder):
    data = dataset(DataConfig(source="folder", path=folder, frames=2, size=16, caption_lines=True, prefix="sks"))
    assert data.item(3).captions == (f"sks {data.texts[3].removeprefix('sks ')}", "sks clip 3")
    said = {}
    for batch in take(data.batches(10), 8):
        for index, tokens in zip(batch["index"], batch["tokens"]):
            said.setdefault(int(index), []).append(bytes(tokens.astype(np.uint8)))
    for index, own in said.items():
        assert set(own) <= {bytes(letters(text)) for text in data.item(index).captions}
    assert 20 <= sum(b"sks clip" in each for own in said.values() for each in own) <= 60  # of 80
    whole = dataset(DataConfig(source="folder", path=folder, frames=2, size=16, prefix="sks,", suffix=", in blue"))
    assert "\n" in whole.texts[3] and whole.texts[3].startswith("sks, ") and whole.texts[3].endswith("clip 3, in blue")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"buckets": -1}, r"data\.buckets=-1"),
        ({"buckets": 2, "multiple": (1, 64)}, r"data\.size, or set data\.multiple"),
        ({"buckets": 2, "frames": 99}, r"longest of 10 clips has 24 frames .*set data\.frames=24"),
        ({"buckets": 2, "heldout": 30}, r"none of the 10 clips can be used \(the first one, .*0\.mp4: too short: 0"),
        ({"weights": (1.0, 2.0)}, r"data\.weights=\(1\.0, 2\.0\): give a positive number for each of the 1"),
        ({"weights": (0.0,)}, r"data\.weights=\(0\.0,\)"),
        ({"source": "folder;webvid;clip"}, r"names 3 readers for 1"),
        ({"source": "folder;webvids", "path": ";"}, "did you mean 'webvid'"),
    ],
)
def test_wrong_buckets_and_folders_are_named_in_a_line(folder, wrong, message):
    with pytest.raises(InputError, match=message) as caught:
        dataset(DataConfig(**{"source": "folder", "path": folder, "frames": 8, "size": 24, **wrong}))
    assert "\n" not in str(caught.value)
