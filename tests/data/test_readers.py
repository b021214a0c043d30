"""Every source gives the pictures and captions that were put there, and names what is wrong with what it is given."""

import gzip
import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from vidjax.data.pipeline import DataConfig, make_dataset
from vidjax.data.readers import SHIPPED, SOURCES, read_idx, write_array_record
from vidjax.data.shapes import COLOURS, MOVES, SPEED, draw
from vidjax.data.video_reading import BrokenClip, read_frames
from vidjax.errors import InputError


def first_frames(item):
    with item.open() as video:
        return video.read([0, video.frames - 1])


def test_webvid_finds_files_by_page_and_id(tmp_path, mp4):
    for root in (tmp_path, tmp_path / "videos"):
        (root / "007").mkdir(parents=True)
        (root / "007" / "12.mp4").write_bytes(mp4.read_bytes())
        csv = 'videoid,contentUrl,duration,page_dir,name\n12,http://x,PT00H00M04S,007,"a circle, red"\n'
        (tmp_path / "results.csv").write_text(csv)
        for path in (tmp_path, tmp_path / "results.csv"):
            source = SOURCES["webvid"](str(path))
            assert [source[i].text for i in range(len(source))] == ["a circle, red"]
            np.testing.assert_array_equal(first_frames(source[0]), read_frames(mp4, [0, 39]))
        if root == tmp_path:
            (root / "007" / "12.mp4").unlink()


def test_webvid_split_picks_among_tables(tmp_path):
    for split in ("train", "val"):
        (tmp_path / f"results_{split}.csv").write_text(f"videoid,page_dir,name\n1,a,{split} caption\n")
    assert SOURCES["webvid"](str(tmp_path), "val")[0].text == "val caption"
    with pytest.raises(InputError, match="0 CSV files"):
        SOURCES["webvid"](str(tmp_path), "test")


def test_shipped_clips_are_as_promised():
    source = SOURCES["webvid"]()
    assert len({source[i].text for i in range(len(source))}) == len(source) == 8
    for i in range(len(source)):
        with source[i].open() as video:
            assert 35 <= video.frames <= 75 and video.fps == 15 and video.height == video.width == 96
            assert abs(np.diff(video.read(range(video.frames)).astype(float), axis=0)).mean((1, 2, 3)).max() < 40, (
                "a cut"
            )
    assert sum(p.stat().st_size for p in SHIPPED.parent.rglob("*")) < 3e6
    attribution = (SHIPPED.parent / "ATTRIBUTION.md").read_text()
    assert all(f"`{p.stem}`" in attribution for p in SHIPPED.parent.rglob("*.mp4"))


def test_folder_captions_and_classes(tmp_path, mp4):
    for name in ("b_side/two.mp4", "b_side/one.mp4", "apples/three.mp4", "four.mp4", "five.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(mp4.read_bytes())
    (tmp_path / "b_side" / "two.txt").write_text("a sidecar\n")
    (tmp_path / "captions.json").write_text(json.dumps({"four.mp4": "from the list", "b_side/two.mp4": "not this"}))
    source = SOURCES["folder"](str(tmp_path))
    found = {(item.text, item.label) for item in (source[i] for i in range(len(source)))}
    assert found == {("a sidecar", 1), ("b side", 1), ("apples", 0), ("from the list", -1), ("", -1)}
    assert source.num_classes == 2
    np.testing.assert_array_equal(first_frames(source[0]), read_frames(mp4, [0, 39]))


def test_one_clip(tmp_path, mp4):
    (tmp_path / "me.mp4").write_bytes(mp4.read_bytes())
    (tmp_path / "me.txt").write_text("a man skis")
    source = SOURCES["clip"](str(tmp_path / "me.mp4"))
    assert len(source) == 1 and source[0].text == "a man skis"
    np.testing.assert_array_equal(first_frames(source[0]), read_frames(mp4, [0, 39]))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files(tmp_path, suffix):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5, 28, 20), np.uint8), np.array([3, 1, 4, 1, 5], np.uint8)
    for name, array in (("t10k-images-idx3-ubyte", images), ("t10k-labels-idx1-ubyte", labels)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        data = header + array.tobytes()
        (tmp_path / (name + suffix)).write_bytes(gzip.compress(data) if suffix else data)
    source = SOURCES["idx"](str(tmp_path), "test")
    assert [(source[i].text, source[i].label) for i in range(5)] == [(str(k), k) for k in labels]
    assert source.num_classes == 6
    np.testing.assert_array_equal(np.stack([first_frames(source[i])[0, :, :, 0] for i in range(5)]), images)
    with pytest.raises(InputError, match="no train images"):
        SOURCES["idx"](str(tmp_path), "train")


def test_idx_file_cut_short(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + bytes(40))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(100))[:20])
    with pytest.raises(InputError, match="not a whole IDX file"):
        SOURCES["idx"](str(tmp_path))


def test_array_record(tmp_path, mp4):
    header = {"name": "c.mp4", "text": "a circle\nof two lines", "label": 2}
    write_array_record(tmp_path / "a.array_record-00000-of-00002", [(header, mp4.read_bytes())])
    write_array_record(tmp_path / "a.array_record-00001-of-00002", [({}, mp4.read_bytes()), ({"text": "t"}, b"")])
    source = SOURCES["array_record"](str(tmp_path))
    assert [source[i].text for i in range(3)] == [header["text"], "", "t"]
    assert (source[0].name, source[0].label, source.num_classes) == ("c.mp4", 2, 3)
    for i in range(2):
        np.testing.assert_array_equal(first_frames(source[i]), read_frames(mp4, [0, 39]))


PREPARE = """
import sys, numpy as np, tensorflow_datasets as tfds
class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(FEATURES))
    def _split_generators(self, manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for i in range(4):
            yield i, EXAMPLE(i)
builder = Tiny(data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare()
print(builder.data_path)
"""
IMAGES = """
import io
from PIL import Image
def png(value):
    file = io.BytesIO()
    Image.new("RGB", (5, 6), (value, value, value)).save(file, "PNG")
    return io.BytesIO(file.getvalue())
FEATURES = {"image": tfds.features.Image(shape=(6, 5, 3)), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
EXAMPLE = lambda i: {"image": png(50 * i), "label": i % 2}
"""
VIDEOS = """
FEATURES = {"video": tfds.features.Tensor(shape=(), dtype=np.object_), "caption": tfds.features.Text()}
EXAMPLE = lambda i: {"video": open(sys.argv[2], "rb").read(), "caption": f"caption {i}"}
"""


def prepare(code, *arguments):
    """A tfds data set made by another process; returns its folder."""
    head, tail = PREPARE.split("class Tiny")
    done = subprocess.run(
        [sys.executable, "-c", head + code + "class Tiny" + tail, *arguments], capture_output=True, text=True
    )
    assert not done.returncode, done.stderr[-2000:]
    return done.stdout.split()[-1]


def test_tfds_images_without_tensorflow(tmp_path):
    source = SOURCES["tfds"](prepare(IMAGES, str(tmp_path)))
    found = sorted((int(first_frames(source[i])[0, 0, 0, 0]), source[i].text, source[i].label) for i in range(4))
    assert found == [(0, "cat", 0), (50, "dog", 1), (100, "cat", 0), (150, "dog", 1)]
    assert source.num_classes == 2 and "tensorflow" not in sys.modules


def test_tfds_encoded_videos(tmp_path, mp4):
    source = SOURCES["array_record"](prepare(VIDEOS, str(tmp_path), str(mp4)))
    assert sorted(source[i].text for i in range(4)) == [f"caption {i}" for i in range(4)]
    np.testing.assert_array_equal(first_frames(source[2]), read_frames(mp4, [0, 39]))


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
def test_shapes_are_where_their_caption_says(shape, move):
    video = draw(shape, "blue", move, frames=25, size=72).astype(float)
    down, right = MOVES[move]
    shift = round(72 * SPEED)
    np.testing.assert_allclose(video[1:], np.roll(video[:-1], (shift * down, shift * right), (1, 2)), atol=1)
    np.testing.assert_allclose(video[24], video[0], atol=1)
    area = {"circle": np.pi * 0.17**2, "square": (1.7 * 0.17) ** 2, "triangle": 3**1.5 / 4 * 0.17**2}[shape]
    covered = (video[0] - 128)[..., 2].sum() / (COLOURS["blue"][2] - 128) / 72**2
    assert abs(covered - area) < 0.05 * area
    assert len(SOURCES["shapes"]()) == 48


WRONG = {
    "webvid": ("/nowhere", "no such path"),
    "folder": ("/nowhere", "no such path"),
    "clip": ("", "data.path is empty"),
    "idx": ("/nowhere", "no such path"),
    "array_record": ("/nowhere", "no such path"),
    "tfds": ("no_such_data_set", "no_such_data_set"),
}


@pytest.mark.parametrize("name", WRONG)
def test_missing_data_is_named(name):
    path, message = WRONG[name]
    with pytest.raises(InputError, match=message) as caught:
        SOURCES[name](path)
    assert "\n" not in str(caught.value)


def test_missing_column_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("videoid,contentUrl,page_dir\n1,x,y\n")
    with pytest.raises(InputError, match="no column name"):
        SOURCES["webvid"](str(tmp_path / "a.csv"))
    with pytest.raises(InputError, match="no files to read"):
        SOURCES["folder"](str(tmp_path))
    (tmp_path / "a.array_record").write_bytes(b"nothing of the sort")
    with pytest.raises(InputError, match="not ArrayRecord"):
        SOURCES["array_record"](str(tmp_path / "a.array_record"))


EVIL = "elsewhere.code.Feature"


@pytest.mark.parametrize(
    "features",
    [
        {"pythonClassName": EVIL, "jsonFeature": {"json": "{}"}},
        {"python_class_name": EVIL, "jsonFeature": {"json": "{}"}},
        {"type": EVIL, "content": {}},
        {
            "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
            "jsonFeature": {"json": json.dumps({"feature": {"type": EVIL, "content": {}}, "length": None})},
        },
    ],
)
def test_no_code_of_a_data_set_runs(tmp_path, monkeypatch, features):
    """tfds imports the module that a data set names for its features; the folder of the programs is where it looks."""
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (folder / "dataset_info.json").write_text(json.dumps({"name": "a", "version": "1.0.0"}))
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(InputError, match=f"names the feature {EVIL}"):
        SOURCES["tfds"](str(folder))
    assert not (tmp_path / "ran").exists()


def test_files_without_an_end_are_not_waited_for(tmp_path, mp4):
    """A pipe, or /dev/zero by a link, in place of every file that a data set has beside its clips."""
    (tmp_path / "a.mp4").write_bytes(mp4.read_bytes())
    (tmp_path / "dataset_info.json").write_text("{}")
    for source, name in (
        ("folder", "captions.json"),
        ("idx", "train-images-idx3-ubyte"),
        ("idx", "train-images-idx3-ubyte.gz"),
        ("tfds", "features.json"),
        ("array_record", "a.array_record"),
        ("webvid", "a.csv"),
    ):
        for make in (os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
            make(tmp_path / name)
            path = tmp_path / name if source == "array_record" else tmp_path
            with pytest.raises(InputError, match="not a file"):
                SOURCES[source](str(path))
            (tmp_path / name).unlink()


@pytest.mark.parametrize("shape", [(2, 0, 0), (2, 0, 3), (0, 3, 3)])
def test_idx_images_without_pixels_are_refused(tmp_path, shape):
    for name, array in (("images-idx3", np.zeros(shape, np.uint8)), ("labels-idx1", np.zeros(shape[0], np.uint8))):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (tmp_path / f"train-{name}-ubyte").write_bytes(header + array.tobytes())
    with pytest.raises(InputError, match=r"pixels|no clips"):
        make_dataset(DataConfig(source="idx", path=str(tmp_path), frames=1, size=8), seed=0)


def test_idx_files_are_not_unpacked_beyond_what_they_speak_of(tmp_path):
    head = bytes([0, 0, 8, 2])
    packed = gzip.compress(head + bytes([0, 0, 0, 2, 0, 0, 0, 3]) + bytes(50_000_000))
    (tmp_path / "bomb.gz").write_bytes(packed)
    tracemalloc.start()
    assert read_idx(tmp_path / "bomb.gz").shape == (2, 3)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    (tmp_path / "large").write_bytes(head + b"\xff" * 8)
    (tmp_path / "damaged.gz").write_bytes(packed[:20] + b"\xff" * 200)
    for name in ("large", "damaged.gz"):
        with pytest.raises(InputError, match="not a whole IDX file"):
            read_idx(tmp_path / name)


def test_records_whose_header_is_wrong_are_broken_clips(tmp_path, mp4):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for header in (b"3", b"[" * 100_000, b'{"label": "cat"}', b'{"label": 1e400}', b"\xff"):
        writer.write(header + b"\n" + mp4.read_bytes())
    writer.close()
    source = SOURCES["array_record"](str(tmp_path))
    for i in range(len(source)):
        with pytest.raises(BrokenClip, match="its record has no readable header"):
            source[i].open()


def test_a_damaged_record_is_a_broken_clip_and_the_others_are_read(tmp_path, mp4, damage):
    """One bit; also in the first record, which would tell whether there are classes."""
    for damaged in (0, 2):
        entries = [({"name": f"{i}", "label": i}, mp4.read_bytes()) for i in range(4)]
        write_array_record(tmp_path / "a.array_record", entries)
        damage(tmp_path / "a.array_record", damaged)
        source = SOURCES["array_record"](str(tmp_path / "a.array_record"))
        assert len(source) == source.num_classes == 4
        with pytest.raises(BrokenClip, match="its record is damaged"):
            source[damaged].open()
        for i in {0, 1, 2, 3} - {damaged}:
            assert (source[i].name, source[i].label) == (str(i), i)
            np.testing.assert_array_equal(first_frames(source[i]), read_frames(mp4, [0, 39]))
        config = DataConfig(source="array_record", path=str(tmp_path / "a.array_record"), frames=8, size=32)
        batch = next(make_dataset(config, seed=0).batches(4))
        assert sorted(batch["index"]) == sorted(i + (i == damaged) for i in range(4))
        assert batch["substituted"].sum() == 1
