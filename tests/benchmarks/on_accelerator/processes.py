"""Programs that are started, watched and, if they take too long, stopped."""

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from turns import resume, send

_running: set[subprocess.Popen] = set()
_stopped = threading.Event()


def stop_all() -> None:
    """Stops the processes that run now, and starts none any more."""
    _stopped.set()
    end([process.pid for process in list(_running)])


def end(leaders: list[int]) -> None:
    """Asks groups of processes to end, those too that are paused."""
    send(leaders, signal.SIGTERM)
    send(leaders, signal.SIGCONT)


def run_process(command: Sequence[str], seconds: float, environment: Mapping[str, str]) -> tuple[int | None, str]:
    """(exit status, end of what it wrote to stderr); None: it was stopped after so many seconds."""
    if _stopped.is_set():
        return None, ""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=dict(environment), stderr=errors, start_new_session=True)
        _running.add(process)
        try:
            status: Any = process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _running.discard(process)
            if process.poll() is None:
                end([process.pid])
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if process.returncode != 0:  # it may have been measuring, and have paused the others
                resume([each.pid for each in list(_running)], environment)
        errors.seek(0)
        return status, errors.read()[-2000:].strip()


def describe_end(status: int | None, tail: str) -> str:
    if status is None:
        return f"stopped: it took longer than it may; {tail}"
    return f"the process ended with {signal.Signals(-status).name if status < 0 else f'status {status}'}; {tail}"
