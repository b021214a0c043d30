"""Several processes on one machine, started as a user starts them: what one would train, save, sample and survive."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from starts import Process

ROOT = Path(__file__).parents[2]
STEPS = 12
FLAGS = (
    f"--config={ROOT}/tests/tiny.py:pixels",
    "--config.model.attention_levels=(False,)",
    f"--config.stages.diffusion.train.steps={STEPS}",
    "--config.stages.diffusion.train.sample_every=5",
)
GRACE = 60  # seconds in which all must be over, on a busy machine


def start(count, program, *flags, env):
    """That many processes of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = (
        [()]
        if count == 1
        else [(f"--coordinator=127.0.0.1:{port}", f"--processes={count}", f"--process_id={i}") for i in range(count)]
    )
    return [Process(program, [*flags, *how], env) for how in joined]


def end(processes, within=300):
    """(exit status, stdout, stderr) of each; kills them if they take longer than that together."""
    until = time.monotonic() + within
    try:
        said = [process.communicate(timeout=max(until - time.monotonic(), 1)) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said)]


def losses(workdir: Path) -> dict[int, float]:
    lines = (workdir / "diffusion" / "metrics.jsonl").read_text().splitlines()
    return {entry["step"]: entry["loss"] for entry in map(json.loads, lines)}


def until_logged(workdir: Path, count: int, processes) -> None:
    metrics = workdir / "diffusion" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.read_text().count("\n") >= count):
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes), end(processes)
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, env):
    """The losses of one process, uninterrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    flags = (*FLAGS, "--stage=diffusion", f"--workdir={workdir}", "--config.stages.diffusion.train.sample_every=0")
    ((status, _, errors),) = end(start(1, "main", *flags, env=env))
    assert status == 0, errors
    return losses(workdir)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, env):
    """A run of two processes that was stopped, by a signal to the second, and went on in four, each pair of which has
    the parameters once."""
    workdir = tmp_path_factory.mktemp("stopped")
    flags = (*FLAGS, f"--workdir={workdir}")
    two = start(2, "main", *flags, env=env)
    until_logged(workdir, 3, two)
    two[1].send_signal(signal.SIGTERM)
    ended = end(two, GRACE)
    newest = max(int(path.name) for path in (workdir / "diffusion" / "checkpoints").iterdir() if path.name.isdigit())
    assert [status for status, *_ in ended] == [143, 143], ended
    assert f"diffusion: stopped at step {newest} on SIGTERM, saved" in ended[0][1]
    assert "diffusion" not in ended[1][1]  # one talks
    four = end(start(4, "main", *flags, "--config.mesh.fsdp=2", env=env))
    assert [status for status, *_ in four] == [0] * 4, four
    assert f"continues from step {newest}" in four[0][1]
    return workdir


def test_any_number_of_processes_gives_the_losses_of_one(whole, stopped):
    several = losses(stopped)
    assert several.keys() == whole.keys()
    np.testing.assert_allclose(list(several.values()), list(whole.values()), rtol=1e-4)


def test_several_processes_sample_as_one_does(stopped, env):
    names = sorted(path.name for path in (stopped / "samples").iterdir())
    pictures = [(stopped / "samples" / name).read_bytes() for name in names]
    assert any(name.endswith(".png") for name in names) and any(name.endswith(".mp4") for name in names)
    (stopped / "summary.json").unlink()
    ((status, said, errors),) = end(start(1, "main", *FLAGS, f"--workdir={stopped}", env=env))
    assert status == 0 and "diffusion: finished" in said, errors
    assert (stopped / "summary.json").exists()
    assert [(stopped / "samples" / name).read_bytes() for name in names] == pictures


def test_several_processes_evaluate_as_one_does(stopped, env, tmp_path):
    figures = {}
    for count in (1, 2):
        file = tmp_path / f"{count}.json"
        flags = (f"--workdir={stopped}", "--count=6", "--batch=2", "--metrics=motion_magnitude", f"--json={file}")
        ended = end(start(count, "evaluate", *flags, env=env))
        assert [status for status, *_ in ended] == [0] * count, ended
        figures[count] = json.loads(file.read_text())["metrics"]
    assert figures[1] == figures[2] and figures[1]["motion_magnitude"]["videos"] == 6


def test_a_killed_process_ends_the_others_and_one_can_go_on(whole, env, tmp_path):
    flags = (*FLAGS, "--stage=diffusion", f"--workdir={tmp_path}", "--config.stages.diffusion.train.sample_every=0")
    two = start(2, "main", *flags, "--config.stages.diffusion.train.steps=100000", env=env)
    until_logged(tmp_path, 6, two)
    two[1].kill()
    began = time.monotonic()
    status, _, errors = end(two, GRACE)[0]
    assert status not in (0, 143) and time.monotonic() - began < GRACE
    assert "lost another process of this run" in errors or "another task died" in errors, errors
    ((status, said, errors),) = end(start(1, "main", *flags, "--max_steps=8", env=env))
    assert status == 0, errors
    assert "continues from step" in said
    found = losses(tmp_path)
    np.testing.assert_allclose(list(found.values()), [whole[step] for step in found], rtol=1e-4)
    assert len(found) == 8


SHARED = """
import sys, dataclasses, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
coordinator, me, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(coordinator, 2, me)
from training.test_checkpoint import Checkpoints, toy
from vidjax.errors import InputError
from vidjax.runtime.processes import gather, on_first_process, run_over, scatter
from vidjax.runtime.sharding import make_mesh
mesh = jax.make_mesh((2,), ("fsdp",))
start = toy(3)
state = scatter(start, jax.tree.map(lambda x: NamedSharding(mesh, P("fsdp") if x.ndim else P()), start))
assert not state.params["kernel"].is_fully_addressable
with Checkpoints(folder) as checkpoints:
    checkpoints.save(state)
whole = gather(state)
jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, whole.saved()), toy(3).saved())
assert on_first_process(lambda: {"asked": me}) == {"asked": 0}
over = make_mesh()
factor = scatter(np.full(2, 10.0), NamedSharding(over, P()))
assert scatter(factor, NamedSharding(over, P())) is factor  # it lies there already
batch = np.arange(10.0, dtype=np.float32).reshape(5, 2)  # of one more, filled up, each process has a half
np.testing.assert_array_equal(run_over(over, jax.jit(lambda factor, x: factor * x), factor, batch), 10 * batch)
def bad():
    raise InputError("bad")
try:
    on_first_process(bad)
except InputError as error:
    print("both know:", error)
with Checkpoints(folder, read_only=True) as checkpoints:  # each by itself, one of them not at all
    if me:
        ema = checkpoints.restore_ema({path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in state.ema.items()})
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, ema), toy(3).ema)
"""


def test_arrays_that_no_process_has_whole_are_gathered_saved_and_read(env, tmp_path):
    from training.test_checkpoint import Checkpoints, toy

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    how = dict(env=env | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command = [sys.executable, "-c", SHARED, coordinator]
    two = [subprocess.Popen([*command, str(i), str(tmp_path)], **how) for i in range(2)]
    for status, said, errors in end(two, 120):
        assert status == 0 and "both know: bad" in said, errors
    with Checkpoints(tmp_path) as checkpoints:
        read = checkpoints.restore(toy(0)).saved()
    jax.tree.map(np.testing.assert_array_equal, read, toy(3).saved())


def test_bad_input_ends_all_processes_with_one_line_each(env, tmp_path):
    (tmp_path / "file").touch()
    for status, _, errors in end(start(2, "main", *FLAGS, f"--workdir={tmp_path / 'file' / 'w'}", env=env), GRACE):
        assert status == 1 and errors.count("error: ") == 1 and "can't be written" in errors
        assert "Traceback" not in errors
