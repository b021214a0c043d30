"""Several processes on one machine, started as a user starts them: what one would train, save, sample and survive."""

import json
import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from starts import Process

ROOT = Path(__file__).parents[2]
STEPS = 48
FLAGS = (
    f"--config={ROOT}/tests/tiny.py:pixels",
    "--config.model.attention_levels=(False,)",
    f"--config.stages.diffusion.train.steps={STEPS}",
    f"--config.stages.diffusion.train.sample_every={STEPS}",
    "--config.stages.diffusion.train.save_every=4",
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


def saved(workdir: Path) -> int:
    """The step of the newest checkpoint."""
    return max(int(path.name) for path in (workdir / "diffusion" / "checkpoints").iterdir() if path.name.isdigit())


def until_logged(workdir: Path, count: int, processes, since: float = 0.0) -> None:
    """Waits until these processes, that were started at `since`, have logged that step."""
    metrics = workdir / "diffusion" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.stat().st_mtime > since and metrics.read_text().count("\n") >= count):
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes), end(processes)
        time.sleep(0.01)


@pytest.fixture(scope="module")
def two_devices(env):
    """Of processes that have two devices each."""
    return {**env, "XLA_FLAGS": f"{env.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, env):
    """The losses of one process, uninterrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    once = [f"--config.stages.diffusion.train.{key}" for key in ("sample_every=0", f"save_every={STEPS}")]
    flags = (*FLAGS, "--stage=diffusion", f"--workdir={workdir}", *once)
    ((status, _, errors),) = end(start(1, "main", *flags, env=env))
    assert status == 0, errors
    return losses(workdir)


@pytest.fixture(scope="module")
def killed(tmp_path_factory, env):
    """A run of two processes of which one was killed, and what became of the other."""
    workdir = tmp_path_factory.mktemp("run")
    two = start(2, "main", *FLAGS, f"--workdir={workdir}", env=env)
    until_logged(workdir, 10, two)
    two[1].kill()
    began = time.monotonic()
    return workdir, end(two, GRACE)[0], time.monotonic() - began


@pytest.fixture(scope="module")
def stopped(killed, two_devices):
    """That run, gone on in two processes of two devices, each pair of which has the parameters once, and stopped by a
    signal to the second: what became of them, and between which steps."""
    workdir, *_ = killed
    before, since = saved(workdir), time.time()
    two = start(2, "main", *FLAGS, f"--workdir={workdir}", "--config.mesh.fsdp=2", env=two_devices)
    until_logged(workdir, before + 3, two, since)
    two[1].send_signal(signal.SIGTERM)
    return end(two, GRACE), before, saved(workdir)


@pytest.fixture(scope="module")
def finished(killed, stopped, env):
    """That run, ended by one process."""
    workdir, *_ = killed
    ((status, said, errors),) = end(start(1, "main", *FLAGS, f"--workdir={workdir}", env=env))
    assert status == 0 and f"continues from step {stopped[2]}" in said, errors
    return workdir


def test_a_killed_process_ends_the_others(killed):
    _, (status, _, errors), seconds = killed
    assert status not in (0, 143) and seconds < GRACE
    assert "lost another process of this run" in errors or "another task died" in errors, errors


def test_a_signal_to_one_process_stops_all_after_the_same_step(stopped):
    (one, other), before, newest = stopped
    assert [one[0], other[0]] == [143, 143] and newest > before, (one, other)
    assert f"continues from step {before}" in one[1]
    assert f"diffusion: stopped at step {newest} on SIGTERM, saved" in one[1]
    assert "diffusion" not in other[1]  # one talks


def test_any_number_of_processes_gives_the_losses_of_one(whole, finished):
    several = losses(finished)
    assert several.keys() == whole.keys()
    np.testing.assert_allclose(list(several.values()), list(whole.values()), rtol=1e-4)


def test_several_processes_sample_as_one_does(finished, two_devices):
    """Started again a finished run trains no more, and makes what is missing."""
    before = losses(finished)
    names = sorted(path.name for path in (finished / "samples").iterdir())
    pictures = [(finished / "samples" / name).read_bytes() for name in names]
    assert any(name.endswith(".png") for name in names) and any(name.endswith(".mp4") for name in names)
    for file in ((finished / "summary.json"), *(finished / "samples").iterdir()):
        file.unlink()
    both = end(start(2, "main", *FLAGS, f"--workdir={finished}", env=two_devices))
    assert [status for status, *_ in both] == [0, 0] and "diffusion: finished" in both[0][1], both
    assert (finished / "summary.json").exists() and losses(finished) == before
    assert [(finished / "samples" / name).read_bytes() for name in names] == pictures


def test_several_processes_evaluate_as_one_does(finished, env, tmp_path):
    figures = {}
    for count in (1, 2):
        file = tmp_path / f"{count}.json"
        flags = (f"--workdir={finished}", "--count=6", "--batch=2", "--metrics=motion_magnitude", f"--json={file}")
        ended = end(start(count, "evaluate", *flags, env=env))
        assert [status for status, *_ in ended] == [0] * count, ended
        figures[count] = json.loads(file.read_text())["metrics"]
    assert figures[1] == figures[2] and figures[1]["motion_magnitude"]["videos"] == 6


SHARED = """
import sys, dataclasses, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
sys.path.insert(0, "tests")
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
    (tmp_path / "script.py").write_text(SHARED)
    script, folder = str(tmp_path / "script.py"), tmp_path / "checkpoints"
    two = [Process(script, [coordinator, str(i), str(folder)], env, ROOT) for i in range(2)]
    for status, said, errors in end(two, 120):
        assert status == 0 and "both know: bad" in said, errors
    with Checkpoints(folder) as checkpoints:
        read = checkpoints.restore(toy(0)).saved()
    jax.tree.map(np.testing.assert_array_equal, read, toy(3).saved())


def test_bad_input_ends_all_processes_with_one_line_each(env, tmp_path):
    (tmp_path / "file").touch()
    for status, _, errors in end(start(2, "main", *FLAGS, f"--workdir={tmp_path / 'file' / 'w'}", env=env), GRACE):
        assert status == 1 and errors.count("error: ") == 1 and "can't be written" in errors
        assert "Traceback" not in errors
