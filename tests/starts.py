"""Many starts of programs for the imports of one: a process that has imported what programs import forks for each."""

import atexit
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# A program's: that of the tests before what they import has written to it, as OpenCV does.
ENV = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}

# A child is what `python -m` would have started: nothing has read flags, and JAX has no threads yet.
CODE = """
import gc, json, os, runpy, sys
gc.disable()
import matplotlib.figure, tensorboardX.record_writer, transformers
import vidjax.evaluation.page, vidjax.evaluation.results, vidjax.training.loop
transformers.CLIPTokenizer
gc.collect()
gc.freeze()
gc.enable()
for line in sys.stdin:
    kind, asked = json.loads(line)
    if kind == "start":
        if not (child := os.fork()):
            break
        answer = child
    else:
        ended, status = os.waitpid(asked, os.WNOHANG if kind == "poll" else 0)
        answer = os.waitstatus_to_exitcode(status) if ended else None
    print(json.dumps(answer), flush=True)
else:
    sys.exit()
program, arguments, environment, folder, *files = asked
os.environ.clear()
os.environ.update(environment)
for stream, file in enumerate((os.devnull, *files)):
    os.dup2(os.open(file, os.O_RDWR), stream)
os.chdir(folder)
sys.argv = [program, *arguments]
if "/" in program:
    sys.path.insert(0, os.path.dirname(program))
    runpy.run_path(program, run_name="__main__")
else:
    runpy.run_module(program, run_name="__main__", alter_sys=True)
"""


READ_AT_IMPORT = ("PYTHON", "PATH", "LD_", "JAX_", "HF_", "FSSPEC_", "GCSFS_")


class Server:
    """A process that has read what imports read of an environment; it answers one question at a time."""

    def __init__(self, env: Mapping[str, str]):
        command = [sys.executable, "-c", CODE]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.folder, self.count = Path(tempfile.mkdtemp(prefix="vidjax-said-")), itertools.count()
        atexit.register(self.end)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder)

    def ask(self, kind: str, asked: object) -> int | None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([kind, asked]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


SERVERS: dict[tuple, Server] = {}


class Process:
    """What `subprocess.Popen` has of a process, as far as tests want it; of a program, or of a file with a script."""

    def __init__(self, name: str, arguments: Sequence[str | Path], env: Mapping[str, str], cwd: Path | None = None):
        if (known := tuple(sorted(item for item in env.items() if item[0].startswith(READ_AT_IMPORT)))) not in SERVERS:
            SERVERS[known] = Server(env)
        self.server, self.returncode = SERVERS[known], None
        self.arguments = [str(each) for each in arguments]
        self.files = [self.server.folder / f"{next(self.server.count)}" for _ in range(2)]
        for file in self.files:  # of a process that is killed at once as well
            file.touch()
        started = name if "/" in name else f"vidjax.{name}"
        self.pid = self.server.ask(
            "start", (started, self.arguments, dict(env), str(cwd or Path.cwd()), *map(str, self.files))
        )

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.server.ask("poll", self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it said, when it has ended."""
        if timeout is None and self.returncode is None:
            self.returncode = self.server.ask("wait", self.pid)
        until = time.monotonic() + (timeout or 0)
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(0.02)
        said, errors = (file.read_text() for file in self.files)
        return said, errors


def program(
    name: str, *arguments: str | Path, env: Mapping[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """What became of `python -m vidjax.<name>` with these arguments; of `python <name>` if it is a file's path."""
    process = Process(name, arguments, env, cwd)
    said, errors = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess([name, *process.arguments], process.returncode, said, errors)


def script(
    code: str, *arguments: str | Path, env: Mapping[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """What became of `python -c <code>` with these arguments."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "script.py")
        file.write_text(code)
        return program(str(file), *arguments, env=env, cwd=cwd)


def start_each(
    name: str, cases: Sequence[Sequence[str]], env: Mapping[str, str], cwd: Path | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """What became of each list of arguments, one after the other."""
    return [program(name, *case, env=env, cwd=cwd) for case in cases]
