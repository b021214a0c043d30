"""A run's folder is held by one run; what is no lock of ours in the lock's place keeps what it holds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vidjax.errors import InputError
from vidjax.runtime import workdir
from vidjax.runtime.workdir import open_workdir


@pytest.fixture(autouse=True)
def released(monkeypatch):
    """Locks end with the test."""
    monkeypatch.setattr(workdir, "HELD", held := {})
    yield
    for lock in held.values():
        lock.close()


def test_the_second_run_hears_of_the_first(tmp_path):
    code = (
        "import sys, pathlib; from vidjax.runtime.workdir import open_workdir; "
        "open_workdir(pathlib.Path(sys.argv[1])); input()"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "w"], stdin=subprocess.PIPE, env=env) as other:
        while not (tmp_path / "w" / ".lock").exists() or not (tmp_path / "w" / ".lock").read_text().endswith("\n"):
            assert other.poll() is None
        with pytest.raises(InputError, match=f"in use by process {other.pid} on "):
            open_workdir(tmp_path / "w")
        other.communicate(b"\n")
    open_workdir(tmp_path / "w")  # its content is that of a run that ended
    assert (tmp_path / "w" / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_process_may_open_its_own_again_and_locks_a_new_folder_of_that_name(tmp_path):
    for _ in range(2):
        for _ in range(2):
            open_workdir(tmp_path / "w")
        assert (tmp_path / "w" / ".lock").read_text().startswith(f"process {os.getpid()} on ")
        shutil.rmtree(tmp_path / "w")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_what_a_lock_links_to_is_left_alone(tmp_path, link):
    (tmp_path / "thesis").write_text("process of writing\nthree years of it")
    (tmp_path / "w").mkdir()
    link(tmp_path / "thesis", tmp_path / "w" / ".lock")
    with pytest.raises(InputError, match=r"\.lock is (a link|not a lock of this program): move it away"):
        open_workdir(tmp_path / "w")
    assert (tmp_path / "thesis").read_text() == "process of writing\nthree years of it"


def test_a_lock_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(InputError, match="is not a file"):
        open_workdir(tmp_path)
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()
    with pytest.raises(InputError, match="can't be written"):
        open_workdir(tmp_path)
