"""A run whose folder is in a bucket, as a user starts it: it gives what a disk gives, also after kills and damage."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_bucket import Buckets
from test_checkpoint import equal, toy

from vidjax import checksums, storage
from vidjax.checkpoint import Checkpoints
from vidjax.data.video_io import probe
from vidjax.editing import kept
from vidjax.errors import InputError
from vidjax.storage import path_of
from vidjax.telemetry import Telemetry

ROOT = Path(__file__).parents[1]
STEPS, EVERY = 8, 2
FLAGS = (
    f"--config={ROOT}/tests/tiny.py:pixels",
    f"--config.stages.diffusion.train.steps={STEPS}",
    f"--config.stages.diffusion.train.save_every={EVERY}",
)
RUN = "gs://bucket/run"
CHECKPOINTS = "diffusion/checkpoints"


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


def start(name, *flags, env):
    command = [sys.executable, "-m", f"vidjax.{name}", *flags]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(name, *flags, env):
    """(exit status, stdout, stderr)."""
    process = start(name, *flags, env=env)
    said = process.communicate(timeout=300)
    return process.returncode, *said


def losses(metrics: str | bytes) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in map(json.loads, metrics.splitlines())}


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory, env):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("run")
    status, _, errors = run("main", *FLAGS, f"--workdir={workdir}", env=env)
    assert status == 0, errors
    return workdir


@pytest.fixture(scope="module")
def there(buckets, outside):
    """What a run left that was killed behind its first checkpoint and started again, by path."""
    process, mark = start("main", *FLAGS, f"--workdir={RUN}", env=outside), f"{CHECKPOINTS}/{EVERY}/commit_success.txt"
    deadline = time.monotonic() + 300
    while not (process.poll() is not None or f"run/{mark}" in buckets.objects["bucket"]):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    status, said, errors = run("main", *FLAGS, f"--workdir={RUN}", env=outside)
    assert status == 0, errors
    assert "diffusion: continues from step" in said and "can't be locked: start only one run" in said
    return buckets.files("bucket", "run")


def test_a_killed_run_in_a_bucket_leaves_what_a_whole_one_on_a_disk_does(there, on_disk):
    assert losses(there["diffusion/metrics.jsonl"]) == losses((on_disk / "diffusion" / "metrics.jsonl").read_text())
    pictures = sorted(path.relative_to(on_disk).as_posix() for path in on_disk.glob("samples/*.png"))
    assert pictures and all(there[name] == (on_disk / name).read_bytes() for name in pictures)
    first = lambda name: name.split("/checkpoints/")[0].split("/events")[0].split("/jit")[0]
    on_disk_are = {path.relative_to(on_disk).as_posix() for path in on_disk.rglob("*") if path.is_file()}
    assert {first(name) for name in there} == {first(name) for name in on_disk_are} - {".lock"}
    events = [data for name, data in there.items() if "/events" in name]
    assert sum(data.count(b"GIF89a") for data in events) >= 1 and not any(".part" in name for name in there)


def test_other_programs_read_and_write_the_bucket(buckets, there, outside, tmp_path):
    status, said, errors = run("sample", f"--workdir={RUN}", "--label=1", "--num_steps=2", env=outside)
    assert status == 0 and f"{RUN}/more/00-class-1.mp4" in said, errors
    assert probe(buckets.files("bucket", "run")["more/00-class-1.mp4"]).frames == 2
    status, said, errors = run("report", f"--workdir={RUN}", env=outside)
    assert status == 0 and said == f"{RUN}/report.html\n", errors
    page = buckets.files("bucket", "run")["report.html"]
    assert page.count(b"data:video/mp4") == 3 and b"<svg" in page
    status, said, errors = run("export", f"--workdir={RUN}", f"--out={tmp_path / 'out'}", env=outside)
    assert status == 0 and (tmp_path / "out" / "config.json").exists(), errors


def test_from_a_broken_checkpoint_a_run_goes_back_to_the_one_before(buckets, there, on_disk, outside):
    buckets.put("bucket", {f"half/{name}": data for name, data in there.items() if "done" not in name})
    newest = f"half/{CHECKPOINTS}/{STEPS}/"
    victim = max((name for name in buckets.objects["bucket"] if name.startswith(newest + "state")), key=len)
    buckets.put("bucket", {victim: buckets.files("bucket", victim)[""][:-9]})
    status, said, errors = run("main", *FLAGS, "--stage=diffusion", "--workdir=gs://bucket/half", env=outside)
    assert status == 0, errors
    assert f"{STEPS} is broken (" in said and f"set aside as {STEPS}.broken" in said
    assert f"continues from step {STEPS - EVERY}" in said
    found = buckets.files("bucket", "half")
    assert f"{CHECKPOINTS}/{STEPS}.broken/files.json" in found
    assert losses(found["diffusion/metrics.jsonl"]) == losses(there["diffusion/metrics.jsonl"])


def test_a_checkpoint_counts_once_it_is_marked_and_as_long_as_it_is_whole(buckets, inside, tmp_path, capsys):
    folder = path_of("gs://bucket/toy")
    with Checkpoints(folder, keep=9) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(toy(step, width=2))
    found = buckets.files("bucket", "toy")
    assert all(f"{step}/files.json" in found and f"{step}/commit_success.txt" in found for step in (1, 2, 3, 4))
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
    assert checksums.damage(tmp_path, contents=True) is None
    (tmp_path / "state" / "manifest.ocdbt").unlink()
    assert checksums.damage(tmp_path, contents=True) == "state/manifest.ocdbt is missing"


def test_a_bucket_that_takes_no_more_ends_with_what_it_had(buckets, inside, monkeypatch):
    with Checkpoints(folder := path_of("gs://bucket/full")) as checkpoints:
        checkpoints.save(toy(1, width=2))
    monkeypatch.setattr(buckets, "refused", ("full/2/state/",))
    says = r"could not be written to gs://bucket/full .*that of step 1 is whole"
    with pytest.raises(InputError, match=says), Checkpoints(folder) as checkpoints:
        checkpoints.save(toy(2, width=2))
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.latest() == 1


def test_metrics_are_there_when_a_checkpoint_is_saved_and_at_the_end(buckets, inside):
    folder = path_of("gs://bucket/told")
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
    import numpy as np

    file, array = path_of("gs://bucket/kept") / "inversion.npz", np.arange(6.0)
    np.testing.assert_array_equal(kept(file, "stamp", lambda: array), array)
    np.testing.assert_array_equal(kept(file, "stamp", lambda: pytest.fail("it was kept")), array)


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
        path_of(text)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_bucket_that_may_only_be_read_is_one_line(buckets, inside, monkeypatch):
    monkeypatch.setattr(buckets, "refused", ("run/",))
    with pytest.raises(InputError, match=r"gs://locked/run can't be written \(403 .*storage\.objects\.create.*log in"):
        storage.check_writable(path_of("gs://locked/run"))


def test_without_its_library_the_extra_is_named(inside, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"wants the library gcsfs: pip install 'vidjax\[gcs\]'"):
        path_of(RUN)


def test_a_bucket_that_does_not_answer_ends_a_run_soon_and_before_it_begins(outside):
    silent = {**outside, "STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"}
    began = time.monotonic()
    status, said, errors = run("main", *FLAGS, f"--workdir={RUN}", env=silent)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert status == 1 and len(lines) == 1 and f"{RUN} can't be reached" in lines[0], errors
    assert "Traceback" not in errors and said == "" and time.monotonic() - began < 60


def test_what_wants_a_disk_is_refused(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    status, _, errors = run("export", f"--workdir={tmp_path}", "--out=gs://bucket/out", env=env)
    assert status == 1 and "--out=gs://bucket/out is no folder of a disk" in errors and "Traceback" not in errors
