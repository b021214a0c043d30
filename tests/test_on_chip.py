"""The program for the first hour on an accelerator, at toy size on a CPU; and that it sees errors."""

import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


def program(platform, file, env, *flags):
    command = [sys.executable, str(BENCHMARKS / f"on_{platform}"), f"--json={file}", *flags]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_what_checks_a_chip_passes_on_a_cpu_at_toy_size(env, tmp_path):
    """Its timing and training take minutes, and are the user's programs, which have tests of their own."""
    done = program("gpu", tmp_path / "found.json", env, "--small", "--parts=facts,correctness")
    assert done.returncode == 0 and "all passed" in done.stdout, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    # Two routes: the chunked form and the TPU's kernel are not the plain one, but near it.
    (case,) = (value for value in found["correctness"]["attention"].values() if isinstance(value, dict))
    for name in ("chunked", "splash"):
        assert case["float32"][name]["gradient"] < 1e-5 < case["bfloat16"][name]["gradient"]


def test_without_its_device_it_says_so_at_once(env, tmp_path):
    done = program("tpu", tmp_path / "found.json", {**env, "JAX_PLATFORMS": "cpu"}, "--parts=timing")
    assert done.returncode == 1 and "error: there is no TPU" in done.stderr.splitlines()[-1], done.stderr


@pytest.fixture
def beside(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "on_accelerator"))


def test_a_number_that_is_off_does_not_pass_and_a_failure_is_found(beside):
    from correctness import judge, relative_error
    from items import attempt, failures

    wanted = {"a": np.ones((2, 3)), "b": np.full(2, 4.0)}
    assert relative_error(wanted, wanted) == 0
    off = {**wanted, "b": np.array([4.0, 4.3])}
    assert relative_error(off, wanted) == pytest.approx(0.3 / 38**0.5)
    figures = {
        "good": judge({"forward": 0.0}, 1e-3),
        "off": judge({"forward": relative_error(off, wanted)}, 1e-3),
        "nan": judge({"forward": float("nan")}, 1e-3),
        "died": {"inside": attempt(lambda: 1 / 0)},
    }
    assert [*failures(figures)] == ["off", "nan", "died/inside"]


def test_one_that_dies_or_hangs_is_recorded_and_the_next_one_starts(beside, tmp_path, monkeypatch, env):
    import items
    import program
    from record import Record

    fake = tmp_path / "fake.py"
    fake.write_text(
        "import json, os, sys, time\n"
        "file, name = sys.argv[1].removeprefix('--json='), sys.argv[3]\n"
        "if name == 'timing/tune': os.abort()\n"
        "if name == 'timing/vdm': time.sleep(600)\n"
        "found = json.load(open(file))\n"
        "found['timing'][name.split('/')[1]]['seconds'] = 1.0\n"
        "json.dump(found, open(file, 'w'))\n"
    )
    monkeypatch.setattr(items, "__file__", str(fake))
    record = Record(tmp_path / "found.json")
    run = lambda names, until: program.run_items(record, names, "gpu", False, 5.0, until, env)
    run(["timing/tune", "timing/vdm", "timing/attention"], math.inf)
    run(["timing/lvdm_text"], 0.0)  # no time is left
    found = record.get("timing")
    assert "SIGABRT" in found["tune"]["error"] and "longer" in found["vdm"]["error"]
    assert found["attention"]["seconds"] == 1.0 and "skipped" in found["lvdm_text"]["error"]


def test_what_one_times_it_times_alone_while_the_others_are_paused(beside, tmp_path, monkeypatch):
    import turns

    (tmp_path / "turns").touch()
    monkeypatch.setenv(turns.FILE, str(tmp_path / "turns"))
    counts = "import turns\nturns.enter()\nwhile True: print(flush=True)"
    with (tmp_path / "lines").open("w") as lines:
        other = subprocess.Popen(
            [sys.executable, "-c", counts], cwd=Path(turns.__file__).parent, stdout=lines, start_new_session=True
        )
    size = lambda: (tmp_path / "lines").stat().st_size

    def grows(before):
        until = time.monotonic() + 60
        while size() == before and time.monotonic() < until:
            time.sleep(0.01)
        return size() > before

    try:
        assert grows(0)
        with turns.alone():
            time.sleep(0.1)  # until the signal is there
            before = size()
            time.sleep(0.3)
            assert size() == before
        assert grows(before)
    finally:
        other.kill()
        other.wait()
    with turns.alone():  # one that has ended does not stand in the way
        pass


def test_one_that_is_stopped_while_it_measures_leaves_nobody_paused(beside, tmp_path):
    import processes
    import turns

    (tmp_path / "turns").touch()
    env = {**os.environ, turns.FILE: str(tmp_path / "turns"), "PYTHONPATH": str(Path(turns.__file__).parent)}
    waits = "import pathlib, time, turns\nturns.enter()\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.01)"
    measures = "import time, turns\nturns.enter()\nwith turns.alone(): time.sleep(600)"
    run = lambda code, seconds: processes.run_process([sys.executable, "-c", code], seconds, env)
    with ThreadPoolExecutor() as threads:
        other = threads.submit(run, waits.format(str(tmp_path / "go")), 60)
        while not (tmp_path / "turns").read_text():
            time.sleep(0.01)
        assert run(measures, 4) == (None, "")
        assert len((tmp_path / "turns").read_text().split()) == 2  # it came so far
        (tmp_path / "go").touch()
        assert other.result() == (0, "")
