"""What can go wrong around a run: no run loses more than what came after its last save, and each says what it did."""

import ctypes
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from starts import Process

ROOT = Path(__file__).parents[1]
EVERY, STEPS = 2, 24  # steps between saves, and of a run
FLAGS = (
    f"--config={ROOT}/tests/tiny.py:pixels",
    "--stage=diffusion",
    "--config.model.attention_levels=(False,)",
    f"--config.stages.diffusion.train.steps={STEPS}",
    f"--config.stages.diffusion.train.save_every={EVERY}",
    "--config.stages.diffusion.train.sample_every=0",
)


def start(workdir, env):
    """A run, which keeps what it compiles in its folder, as a user's does."""
    kept = {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    return Process("main", [*FLAGS, f"--workdir={workdir}"], env | kept)


def end(process):
    """(exit status, stdout, stderr)."""
    said = process.communicate(timeout=300)
    return process.returncode, *said


def run(workdir, env):
    return end(start(workdir, env))


def one_error(done) -> str:
    """The one line that vidjax itself says; beside it there may be warnings."""
    status, _, errors = done
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert status == 1 and len(lines) == 1, done
    return lines[0]


def losses(workdir: Path) -> dict[int, float]:
    lines = (workdir / "diffusion" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, len(lines) + 1))
    return {entry["step"]: entry["loss"] for entry in map(json.loads, lines)}


def logged(workdir: Path) -> int:
    metrics = workdir / "diffusion" / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def saved(workdir: Path) -> list[int]:
    folder = workdir / "diffusion" / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def until_logged(workdir, count, process, since=0.0):
    metrics = workdir / "diffusion" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.stat().st_mtime > since and logged(workdir) >= count:
            break
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, env):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    status, _, errors = run(workdir, env=env)
    assert status == 0, errors
    return workdir


@pytest.fixture
def half(whole, tmp_path):
    """A copy of that run, wanting its last interval."""
    workdir = tmp_path / "half"
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "diffusion" / "checkpoints" / str(STEPS))
    (workdir / "diffusion" / "done.json").unlink()
    return workdir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, env):
    """A run that got a signal in its third step or later, and what it said."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    process = start(workdir, env)
    until_logged(workdir, 3, process)
    process.send_signal(signal.SIGINT)
    return workdir, end(process)


def test_a_signal_is_obeyed_after_the_step_in_hand(stopped):
    """SIGTERM, and that the run goes on with the same losses: tests/runtime/test_processes.py, and below."""
    workdir, (status, said, errors) = stopped
    assert status == 130 and "Traceback" not in errors, errors
    step = saved(workdir)[-1]
    assert 3 <= step == logged(workdir) < STEPS
    assert f"diffusion: stopped at step {step} on SIGINT, saved; the same command goes on" in said


def test_killed_at_random_moments_a_run_loses_no_more_than_one_interval(whole, stopped, env, tmp_path, request):
    """--kills=100 for as many as there is time for. One in four anywhere, the others from the first step on; it begins
    where a signal has stopped it."""
    rng, inside = random.Random(0), 0
    workdir = shutil.copytree(stopped[0], tmp_path / "run", ignore=shutil.ignore_patterns("compilation_cache"))
    for number in range(request.config.getoption("--kills")):
        before, began = saved(workdir), time.time()
        process = start(workdir, env=env)
        if number % 4:
            until_logged(workdir, (before or [0])[-1] + rng.randint(1, 6), process, began)
        time.sleep(rng.uniform(0, 0.3 if number % 4 else 8))
        process.kill()
        said, errors = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), errors
        if before and "parameters train" in said:
            assert f"continues from step {before[-1]}" in said
        assert logged(workdir) - (saved(workdir) or [0])[-1] <= 2 * EVERY  # the newest may have been on its way
        inside += any("tmp" in path.name for path in (workdir / "diffusion" / "checkpoints").glob("*"))
        print(f"kill {number + 1}: {logged(workdir)} steps, {saved(workdir)} saved; {inside} inside a save", flush=True)
        if (workdir / "diffusion" / "done.json").exists():
            assert losses(workdir) == losses(whole)
            shutil.rmtree(workdir)
    status, _, errors = run(workdir, env=env)
    assert status == 0, errors
    assert losses(workdir) == losses(whole)
    assert len([*workdir.glob("compilation_cache/jit_step-*-cache")]) == 1  # each start asked for the same program


def test_from_a_broken_checkpoint_a_run_goes_back_to_the_one_before(whole, half, env):
    """Here a file is cut off; what else counts as broken is told in test_checksums.py."""
    folder = half / "diffusion" / "checkpoints"
    *_, before, newest = saved(whole)
    shutil.copytree(whole / "diffusion" / "checkpoints" / str(newest), folder / str(newest))
    victim = max((folder / str(newest)).rglob("d/*"), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    status, said, errors = run(half, env=env)
    assert status == 0, errors
    assert f"{newest} is broken (" in said and f"set aside as {newest}.broken" in said
    assert f"continues from step {before}" in said
    assert (folder / f"{newest}.broken").is_dir() and saved(half)[-1] == newest
    assert losses(half) == losses(whole)


def test_a_checkpoint_that_cannot_be_read_for_another_reason_is_named(half, env):
    newest = half / "diffusion" / "checkpoints" / str(saved(half)[-1])
    (newest / "files.json").unlink()  # as of an older version
    (newest / "state" / "manifest.ocdbt").write_bytes(b"")
    error = one_error(run(half, env=env))
    assert f"{newest} cannot be read" in error and "rename it" in error


LIMITED = """
import resource, runpy, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
runpy.run_module("vidjax.main", run_name="__main__", alter_sys=True)
"""


def test_on_a_full_disk_a_run_ends_with_what_it_had(half, env):
    """The limit on the size of a file stands for the disk's: the same error, a few bytes later in the same calls."""
    before = saved(half)
    script = half / "limited.py"
    script.write_text(LIMITED)
    done = end(Process(str(script), [*FLAGS, f"--workdir={half}"], env))
    error = one_error(done)
    assert "Traceback" not in done[2]
    assert f"that of step {before[-1]} is whole" in error and "make room" in error
    assert saved(half) == before


def test_a_folder_that_may_only_be_read_is_refused(half, env):
    (half / ".lock").unlink()
    half.chmod(0o555)
    # CAP_DAC_OVERRIDE, by which root writes everywhere, out of what a new program may have.
    dropped = lambda: ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)
    command = [sys.executable, "-m", "vidjax.main", *FLAGS, f"--workdir={half}"]
    done = subprocess.run(command, env=env, preexec_fn=dropped, capture_output=True, text=True)
    half.chmod(0o755)
    error = one_error((done.returncode, done.stdout, done.stderr))
    assert "can't be written (Permission denied): choose another folder" in error


def test_two_runs_do_not_share_a_folder(env, tmp_path):
    first, lock = start(tmp_path, env=env), tmp_path / ".lock"
    while not (lock.exists() and lock.read_text().endswith("\n")):
        assert first.poll() is None
        time.sleep(0.01)
    error = one_error(run(tmp_path, env=env))
    assert f"in use by process {first.pid} on" in error
    assert first.poll() is None
    first.kill()
    first.communicate()
