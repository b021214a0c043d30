"""A run whose folder is in a bucket, as a user starts it: it gives what a disk gives, also after kills and damage."""

import importlib.util
import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from fake_bucket import Buckets
from starts import Process
from training.test_checkpoint import equal, toy

from vidjax.data.video_reading import probe
from vidjax.errors import InputError
from vidjax.evaluation.page import write_report
from vidjax.generation.editing import cached
from vidjax.generation.output import write_samples
from vidjax.recipes import build as recipe
from vidjax.recipes.run import Run
from vidjax.runtime import checksums, storage
from vidjax.runtime.storage import parse_path
from vidjax.training.checkpoint import Checkpoints
from vidjax.training.telemetry import Telemetry

ROOT = Path(__file__).parents[1]
FLAGS = (
    f"--config={ROOT}/tests/tiny.py:pixels",
    "--config.model.attention_levels=(False,)",
    "--config.stages.diffusion.train.steps=8",
    "--config.stages.diffusion.train.save_every=2",
    "--config.stages.diffusion.train.sample_every=0",
)
RUN = "gs://bucket/run"


@pytest.fixture(scope="module")
def buckets():
    with Buckets("bucket", "locked") as server:
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def outside(buckets, env):
    """Of a program that reads and writes those buckets."""
    return {**env, **buckets.env()}


@pytest.fixture
def inside(buckets, monkeypatch):
    """This process reads and writes those buckets."""
    for key, value in buckets.env().items():
        monkeypatch.setenv(key, value)


def run(name, *flags, env):
    """(exit status, stdout, stderr)."""
    process = Process(name, flags, env)
    said = process.communicate(timeout=300)
    return process.returncode, *said


def losses(metrics: str | bytes) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in map(json.loads, metrics.splitlines())}


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory, env):
    """An uninterrupted run, as far as its training goes."""
    workdir = tmp_path_factory.mktemp("run")
    status, _, errors = run("main", *FLAGS, f"--workdir={workdir}", "--stage=diffusion", env=env)
    assert status == 0, errors
    return workdir


@pytest.fixture(scope="module")
def killed(on_disk, buckets, outside):
    """A run that was killed in the middle and lost the end of a file of its newest checkpoint: the steps of those that
    were complete, and what it said when it was started again."""
    process, folder = Process("main", [*FLAGS, f"--workdir={RUN}"], outside), "run/diffusion/checkpoints"
    deadline = time.monotonic() + 300
    while process.poll() is None and f"{folder}/4/commit_success.txt" not in buckets.objects["bucket"]:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    found = buckets.files("bucket", folder)
    steps = sorted(int(name.split("/")[0]) for name in found if re.fullmatch(r"\d+/commit_success\.txt", name))
    victim = next(name for name in found if name.startswith(f"{steps[-1]}/state/ocdbt.process_0/d/"))
    buckets.put("bucket", {f"{folder}/{victim}": found[victim][:-9]})
    status, said, errors = run("main", *FLAGS, f"--workdir={RUN}", env=outside)
    assert status == 0, errors
    return steps, said


def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(killed, buckets):
    (*_, before, broken), said = killed
    assert "can't be locked: start only one run" in said
    assert f"{RUN}/diffusion/checkpoints/{broken} is broken (" in said and f"set aside as {broken}.broken" in said
    assert f"diffusion: continues from step {before}" in said
    assert f"{broken}.broken/files.json" in buckets.files("bucket", "run/diffusion/checkpoints")


def test_a_killed_run_in_a_bucket_leaves_what_a_whole_one_on_a_disk_does(killed, on_disk, buckets):
    there = buckets.files("bucket", "run")
    assert losses(there["diffusion/metrics.jsonl"]) == losses((on_disk / "diffusion" / "metrics.jsonl").read_text())
    about = {path.relative_to(on_disk).as_posix() for path in on_disk.glob("*.json")} | {"summary.json", "report.html"}
    about |= {f"diffusion/{name}" for name in ("metrics.jsonl", "done.json", "parameters.txt", "trained_with.json")}
    videos = [f"samples/{i:02d}-class-{i}-seed{seed}" for i in range(3) for seed in range(2)]
    about |= {f"{name}.{kind}" for name in videos for kind in ("mp4", "json", "txt")} | {"samples/samples.json"}
    about |= {f"samples/{i:02d}-class-{i}.png" for i in range(3)}
    kept = ("diffusion/checkpoints/", "diffusion/tensorboard/events", "compilation_cache/")
    assert {name for name in there if not name.startswith(kept)} == about
    assert sum(len(data) for name, data in there.items() if name.startswith(kept[1])) > 1000
    assert there["config.json"] == (on_disk / "config.json").read_bytes()


def test_other_programs_read_and_write_the_bucket(killed, buckets, outside, inside):
    status, said, errors = run("sample", f"--workdir={RUN}", "--label=1", "--num_steps=2", env=outside)
    assert status == 0 and f"{RUN}/more/00-class-1-seed0.mp4" in said, errors
    assert probe(buckets.files("bucket", "run")["more/00-class-1-seed0.mp4"]).frames == 2
    before = buckets.files("bucket", "run/report.html")[""]
    assert before.count(b"data:video/mp4") == 6 and b"<svg" in before
    buckets.remove("bucket", "run/report.html")
    assert write_report(parse_path(RUN)) == parse_path(RUN) / "report.html"
    assert buckets.files("bucket", "run/report.html")[""] == before
    folder = parse_path(RUN)
    assert recipe.build(Run(folder).config, "diffusion", folder).folder == folder / "diffusion"


def test_a_checkpoint_counts_once_it_is_marked_and_as_long_as_it_is_whole(buckets, inside, tmp_path, capsys):
    folder = parse_path("gs://bucket/toy")
    with Checkpoints(folder, keep=9) as checkpoints:
        for step in (2, 3, 4):
            checkpoints.save(toy(step, width=2))
    found = buckets.files("bucket", "toy")
    assert all(f"{step}/files.json" in found and f"{step}/commit_success.txt" in found for step in (2, 3, 4))
    order = [name for name in buckets.written if name.startswith("toy/4/")]
    assert order.index("toy/4/files.json") > max(i for i, name in enumerate(order) if name.startswith("toy/4/state/"))
    assert order[-1] == "toy/4/commit_success.txt" != order[-2]
    buckets.remove("bucket", "toy/4/commit_success.txt")
    changed = bytes([found["3/state/manifest.ocdbt"][0] ^ 1]) + found["3/state/manifest.ocdbt"][1:]
    buckets.put("bucket", {"toy/3/state/manifest.ocdbt": changed})
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.latest() == 2  # to compare contents costs nothing here
    with Checkpoints(folder, keep=9) as checkpoints:
        assert checkpoints.latest() == 2 and "state/manifest.ocdbt holds other bytes" in capsys.readouterr().out
        equal(checkpoints.restore(toy(0, width=2)).saved(), toy(2, width=2).saved())
        checkpoints.save(toy(3, width=2))
        checkpoints.save(toy(4, width=2))
    with Checkpoints(folder, read_only=True) as checkpoints:
        equal(checkpoints.restore(toy(0, width=2)).saved(), toy(4, width=2).saved())
    assert any(name.startswith("3.broken/") for name in buckets.files("bucket", "toy"))
    for name, data in buckets.files("bucket", "toy/4").items():  # copied to a disk
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert checksums.find_damage(tmp_path, contents=True) is None
    (tmp_path / "state" / "manifest.ocdbt").unlink()
    assert checksums.find_damage(tmp_path, contents=True) == "state/manifest.ocdbt is missing"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the other arrays' writes
def test_a_bucket_that_takes_no_more_ends_with_what_it_had(buckets, inside, monkeypatch):
    with Checkpoints(folder := parse_path("gs://bucket/full")) as checkpoints:
        checkpoints.save(toy(1, width=2))
    monkeypatch.setattr(buckets, "refused", ("full/2/state/",))
    says = r"could not be written to gs://bucket/full .*that of step 1 is whole"
    with pytest.raises(InputError, match=says), Checkpoints(folder) as checkpoints:
        checkpoints.save(toy(2, width=2))
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.latest() == 1


def test_metrics_are_there_when_a_checkpoint_is_saved_and_at_the_end(buckets, inside):
    folder = parse_path("gs://bucket/told")
    telemetry = Telemetry(folder, "diffusion", 9)
    steps = lambda: list(losses(buckets.files("bucket", "told").get("metrics.jsonl", b"")))
    for step in (1, 2, 3):
        telemetry.log(step, {"loss": 1.0})
    assert steps() == []  # an object is written whole: not at every line
    telemetry.flush()
    assert steps() == [1, 2, 3]
    telemetry.log(4, {"loss": 1.0})
    telemetry.close()
    assert steps() == [1, 2, 3, 4]
    Telemetry(folder, "diffusion", 9, start=2).close()
    assert steps() == [1, 2]


def test_what_was_computed_once_is_kept_in_a_bucket(inside):
    file, array = parse_path("gs://bucket/kept") / "inversion.npz", np.arange(6.0)
    np.testing.assert_array_equal(cached(file, "stamp", lambda: array), array)
    np.testing.assert_array_equal(cached(file, "stamp", lambda: pytest.fail("it was kept")), array)


def test_videos_go_to_a_bucket(buckets, inside):
    entry = {"caption": "a b", "png": "samples/00-a-b.png", "videos": ["samples/00-a-b-seed0.mp4"]}
    video = np.zeros((1, 3, 16, 16, 3), np.uint8)
    assert write_samples(parse_path("gs://bucket/shown/samples"), ["a b"], [video], 8.0) == [entry]
    found = buckets.files("bucket", "shown")
    assert probe(found[entry["videos"][0]]).frames == 3 and found[entry["png"]].startswith(b"\x89PNG")
    assert found["samples/00-a-b-seed0.txt"] == b"a b\n"


@pytest.mark.parametrize(
    "text, says",
    [
        ("s3://bucket/run", "mount it and name the mount"),
        ("gs://bucket", "gs://BUCKET/FOLDER"),
        ("gs:///run", "gs://BUCKET/FOLDER"),
        ("gs://nothing/run", "gs://nothing/run can't be reached (404"),
    ],
)
def test_what_is_no_bucket_is_one_line(text, says, inside):
    with pytest.raises(InputError) as error:
        parse_path(text)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_bucket_that_may_only_be_read_is_one_line(buckets, inside, monkeypatch):
    monkeypatch.setattr(buckets, "refused", ("run/",))
    with pytest.raises(InputError, match=r"gs://locked/run can't be written \(403 .*storage\.objects\.create.*log in"):
        storage.check_writable(parse_path("gs://locked/run"))


def test_without_its_library_the_extra_is_named(inside, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"wants the library gcsfs: pip install 'vidjax\[gcs\]'"):
        parse_path(RUN)


def test_a_bucket_that_does_not_answer_ends_a_run_soon_and_before_it_begins(outside):
    silent = {**outside, "STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"}
    began = time.monotonic()
    status, said, errors = run("main", *FLAGS, f"--workdir={RUN}", env=silent)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert status == 1 and len(lines) == 1 and f"{RUN} can't be reached" in lines[0], errors
    assert "Traceback" not in errors and said == "" and time.monotonic() - began < 60


def test_what_wants_a_disk_is_refused(env, tmp_path):
    status, _, errors = run("export", f"--workdir={tmp_path}", "--out=gs://bucket/out", env=env)
    assert status == 1 and "--out=gs://bucket/out is no folder of a disk" in errors and "Traceback" not in errors
