"""Preparing a data set, as a user runs it: the same shards however it went, all good clips, a line for each bad one."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from starts import ENV, Process, program

from vidjax.data import shards
from vidjax.data.pipeline import DataConfig, make_dataset
from vidjax.data.readers import make_source
from vidjax.data.screening import Rules, Seen
from vidjax.data.shapes import draw
from vidjax.data.video_reading import BrokenClip, read_frames
from vidjax.data.video_writing import write_mp4
from vidjax.errors import InputError

needs_beam = pytest.mark.skipif(find_spec("apache_beam") is None, reason="needs pip install -e '.[prepare]'")


def prepare(*arguments):
    return program("prepare", *arguments, env=ENV)


def flags(root, out, **changed):
    given = dict(path=root, out=out, size_min=32, frames_min=8, shards=3, workers=1, scenes=True) | changed
    return [f"--{key}={value}" for key, value in given.items()]


def shot(shape, colour, frames, size=32):
    """A shape on black, grey or white: cuts between them are seen."""
    ground = {"red": 0, "green": 128, "blue": 255}[colour]
    video = draw(shape, colour, "left", frames=frames, size=size)
    return np.where((video == 128).all(-1, keepdims=True), np.uint8(ground), video)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten clips of two classes, one in five is no video; then one each of what else may be wrong."""
    root = tmp_path_factory.mktemp("clips")
    for i in range(10):
        path = root / ("square" if i % 2 else "circle") / f"{i}.mp4"
        path.parent.mkdir(exist_ok=True)
        if i % 5 == 0:
            path.write_bytes(b"<html>" * 9 * i)
        else:
            write_mp4(path, shot(path.parent.name, ("red", "green", "blue")[i % 3], 10 + i), 8)
    cuts = [shot("circle", "red", 12), shot("circle", "blue", 4), shot("square", "green", 20)]
    write_mp4(root / "square" / "cuts.mp4", np.concatenate(cuts), 8)
    write_mp4(root / "square" / "few.mp4", shot("square", "red", 7), 8)
    write_mp4(root / "square" / "small.mp4", shot("square", "red", 12, size=30), 8)
    (root / "square" / "twice.mp4").write_bytes((root / "circle" / "2.mp4").read_bytes())
    return root


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """What one worker makes of the folder in one go."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = prepare(*flags(folder, out))
    assert done.returncode == 0, done.stderr
    assert f"--config.data.source=tfds --config.data.path={out}" in done.stdout and not done.stderr
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    return out


def files(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


@needs_beam
def test_every_good_clip_is_there_and_every_bad_one_is_reported(folder, whole):
    report = json.loads((whole / "report.json").read_text())
    drops = {(Path(drop["clip"]).name, drop["kind"]): drop["why"] for drop in report["drops"]}
    assert drops.keys() == {
        ("0.mp4", "unreadable"),
        ("5.mp4", "unreadable"),
        ("cuts.mp4", "scene cuts"),
        ("few.mp4", "too short"),
        ("small.mp4", "too small"),
        ("twice.mp4", "duplicate"),
    }
    assert drops["0.mp4", "unreadable"] == "zero bytes" and "12 to 15" in drops["cuts.mp4", "scene cuts"]
    assert drops["twice.mp4", "duplicate"].endswith("circle/2.mp4") and drops["few.mp4", "too short"] == "7 frames"
    assert sum(report["dropped"].values()) == 6 and report["clips read"] == 14 and report["clips written"] == 10
    source = make_source("tfds", str(whole), "train")
    clips = {item.name: item for item in map(source.item, range(len(source)))}
    good = [f"{'square' if i % 2 else 'circle'}/{i}.mp4" for i in (1, 2, 3, 4, 6, 7, 8, 9)]
    parts = {"square/cuts.mp4#0-11": slice(0, 12), "square/cuts.mp4#16-35": slice(16, 36)}
    assert clips.keys() == {str(folder / name) for name in (*good, *parts)} and source.num_classes == 2
    for name in good:  # kept whole: the same file, and so the same frames
        item = clips[str(folder / name)]
        with item.open() as video:
            assert video.encoded == (folder / name).read_bytes()
        assert (item.text, item.label) == (Path(name).parent.name, int(name.startswith("square")))
    original = read_frames(folder / "square" / "cuts.mp4").astype(float)
    for name, frames in parts.items():
        with clips[str(folder / name)].open() as video:
            assert video.fps == 8 and video.frames == frames.stop - frames.start
            assert abs(video.read(range(video.frames)) - original[frames]).mean() < 4  # encoded once more


@needs_beam
def test_training_reads_what_was_prepared(folder, whole):
    config = DataConfig(source="tfds", path=str(whole), size=32, frames=8, window="start")
    data = make_dataset(config, seed=0)
    batch = next(data.batches(10))
    assert sorted(batch["index"]) == list(range(10)) and not batch["substituted"].any() and not data.broken
    for video, index in zip(batch["video"], batch["index"]):
        name, _, part = data.clips[index].partition("#")
        first = int(part.split("-")[0]) if part else 0
        wanted = read_frames(name, range(first, first + 8)).astype(float)
        assert abs(video - wanted).mean() < (4 if part else 1e-9)


@needs_beam
def test_two_workers_write_the_same_shards(folder, whole, tmp_path):
    done = prepare(*flags(folder, tmp_path / "out", workers=2))
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "out") == files(whole)


@needs_beam
def test_a_damaged_record_of_a_prepared_set_is_a_broken_clip(whole, tmp_path, damage):
    shutil.copytree(whole, tmp_path / "out")
    damage(tmp_path / "out" / "clips-train.array_record-00000-of-00003", 1)
    source, intact = (make_source("tfds", str(folder), "train") for folder in (tmp_path / "out", whole))
    with pytest.raises(BrokenClip, match="its record is damaged"):
        source[1].open()
    assert [source[i].name for i in (0, 2, 3)] == [intact[i].name for i in (0, 2, 3)]


def kill_when(pattern, part, arguments):
    """Runs the program, and ends it at once when a file of this pattern is there."""
    process = Process("prepare", arguments, ENV)
    while not list(part.glob(pattern)) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -9, "it ended before it could be killed"


@needs_beam
def test_killed_twice_it_goes_on_where_it_was(folder, whole, tmp_path):
    out, part, first = tmp_path / "out", tmp_path / "out.part", folder / "circle" / "0.mp4"
    kill_when("found/0000000.json", part, flags(folder, out))
    assert not out.exists()
    other = prepare(*flags(folder, out, frames_min=9))
    assert other.returncode == 1 and "begun with frames_min 8, not 9" in other.stderr
    first.write_bytes((folder / "circle" / "2.mp4").read_bytes())  # if it was read again, it would not be reported now
    try:
        kill_when("data/*-00000-of-00003", part, flags(folder, out))
        written = {p.name: p.stat().st_mtime_ns for p in (part / "data").iterdir()}
        assert not out.exists() and len(list((part / "found").iterdir())) == 14
        done = prepare(*flags(folder, out, workers=2))
    finally:
        first.write_bytes(b"")
    assert done.returncode == 0, done.stderr
    assert files(out) == files(whole) and not part.exists()
    assert {name: (out / name).stat().st_mtime_ns for name in written} == written  # finished shards are left alone


@needs_beam
def test_a_worker_that_dies_ends_the_program(folder, tmp_path):
    import psutil

    process, workers = Process("prepare", flags(folder, tmp_path / "out", workers=2), ENV), []
    while not workers and process.poll() is None:
        time.sleep(0.01)
        below = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in below if "sdk_worker_main" in " ".join(_arguments(child))]
    for worker in workers:
        worker.kill()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and said.count("\n") == 1, said
    assert "Worker subprocess exited" in said and "the same command goes on" in said


def _arguments(process):
    try:
        return process.cmdline()
    except Exception:  # it has just ended
        return []


@needs_beam
def test_pictures_and_long_clips_are_encoded_in_parts(tmp_path):
    from PIL import Image

    frames = shot("triangle", "red", 21, size=48)
    (tmp_path / "in" / "clip").mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "in" / "clip" / f"{i}.png")
    given = flags(tmp_path / "in", tmp_path / "out", source="frames", seconds=10 / 25, scenes=False, split="")
    done = prepare(*given)
    assert done.returncode == 0, done.stderr
    source = make_source("tfds", str(tmp_path / "out"), "train")
    found = {item.name.partition("#")[2]: item for item in map(source.item, range(len(source)))}
    assert found.keys() == {"0-9", "10-19"} and "1 remainder" in done.stdout and source.num_classes == 0
    with found["10-19"].open() as video:
        assert video.fps == 25 and abs(video.read(range(10)).astype(float) - frames[10:20]).mean() < 4
    made = files(tmp_path / "out")
    (tmp_path / "out.part").mkdir()  # as if it had been killed before it removed what it had worked in
    (tmp_path / "out.part" / "job.json").write_text(json.dumps(json.loads(made["report.json"])["settings"]))
    again = prepare(*given)
    assert again.returncode == 0 and again.stdout == done.stdout.splitlines(True)[-1], again.stderr
    assert files(tmp_path / "out") == made and not (tmp_path / "out.part").exists()
    other = prepare(*given, "--frames_min=9")
    assert other.returncode == 1 and other.stderr.endswith("out is not empty; name a new folder\n")


@needs_beam
def test_what_is_wrong_is_said_in_one_line(folder, tmp_path):
    wrong = {
        "--duplicates=some": "choose keep, exact or alike",
        "--source=foldr": "did you mean 'folder'",
        "--path=/nowhere": "no such path: /nowhere",
        "--frames_min=1000": "none of the 14 clips is kept",
        "--beam_options=--runner=Nope": "Unexpected pipeline runner: Nope",
        "--beam_options='--runner": "No closing quotation: close every quote",
        "--seconds=nan": "--seconds=nan: must be at least 0",
    }
    for i, (flag, says) in enumerate(wrong.items()):
        done = prepare(*flags(folder, tmp_path / str(i)), flag)
        assert done.returncode == 1 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert not (tmp_path / str(i)).exists()


def test_without_its_libraries_it_says_what_to_install(folder, tmp_path):
    hidden = "import sys; sys.modules['apache_beam'] = None; sys.argv = sys.argv[1:]\n"
    code = hidden + "import runpy; runpy.run_module('vidjax.prepare', run_name='__main__', alter_sys=True)"
    arguments = ["vidjax.prepare", *flags(folder, tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=ENV)
    assert (
        done.returncode == 1 and done.stderr.endswith("pip install -e '.[prepare]'\n") and done.stderr.count("\n") == 1
    )


def test_a_folder_that_is_in_the_way_is_left_alone(tmp_path):
    """Whoever made it: it is worked in, and removed at the end, only if this program made it."""
    part = tmp_path / "out.part"
    job = shards.Job("shapes", "", "", Rules(), 1, str(part))
    part.mkdir()
    (part / "thesis").write_text("three years of it")
    with pytest.raises(InputError, match="is in the way, and not of this program"):
        shards.begin(job)
    shards.clear(job)
    assert (part / "thesis").read_text() == "three years of it"
    (part / "thesis").rename(tmp_path / "thesis")
    shards.begin(job)
    shards.begin(job)  # again: it goes on
    for other in (Rules(frames_min=9), Rules(seconds=3.0)):
        shards.clear(dataclasses.replace(job, rules=other))
        with pytest.raises(InputError, match="was begun with"):
            shards.begin(dataclasses.replace(job, rules=other))
    for content in ("", "[]", "{}", "["):
        (part / "job.json").write_text(content)
        with pytest.raises(InputError, match=r"is not JSON|was begun with"):
            shards.begin(job)
    (part / "job.json").unlink()
    shards.begin(job)
    shards.clear(job)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis"]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "file/under", "file", "/proc/x/y"])
def test_a_folder_that_cannot_be_made_is_refused_in_a_line(tmp_path, name):
    (tmp_path / "file").write_text("1")
    job = shards.Job("shapes", "", "", Rules(), 1, str(tmp_path / name))
    assert not shards.is_finished(job, tmp_path / name)
    with pytest.raises(InputError, match=r"can't be written|is not empty") as caught:
        shards.begin(job)
    assert "\n" not in str(caught.value) and [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, 1e300])
def test_lengths_that_are_none_are_refused(seconds):
    with pytest.raises(InputError, match=r"--seconds=.* must be at least 0 and at most"):
        Rules(seconds=seconds)


def test_fingerprints_that_differ_in_few_bits_are_one_clip():
    rng, seen = np.random.default_rng(0), Seen(Rules(duplicates="alike"))
    marks = [int.from_bytes(rng.bytes(64)) for _ in range(50)]
    for i, mark in enumerate(marks):
        assert seen.find(f"{mark:0128x}") is None
        seen.add(f"{mark:0128x}", str(i))
    for count, found in ((0, True), (25, True), (26, False)):
        for i, mark in enumerate(marks):
            flipped = sum(1 << int(bit) for bit in rng.choice(512, count, replace=False))
            assert seen.find(f"{mark ^ flipped:0128x}") == (str(i) if found else None)
    exact = Seen(Rules())
    exact.add("ab" * 16, "a")
    assert exact.find("ab" * 16) == "a" and exact.find("ab" * 15 + "aa") is None
    with pytest.raises(InputError, match="choose keep, exact or alike"):
        Rules(duplicates="none")
