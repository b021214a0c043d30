"""Items that run at once take turns: what one measures, it measures alone, while the others are paused.

A file holds the ids of their processes. Whoever measures has it locked.
"""

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator, Mapping
from typing import IO

FILE = "VIDJAX_BENCHMARK_TURNS"  # names the file; where it is not set, nobody else is there


@contextlib.contextmanager
def _locked(environment: Mapping[str, str] = os.environ) -> Iterator[IO[str]]:
    with open(environment.get(FILE, os.devnull), "a+") as file:
        if FILE in environment:
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        yield file


def enter() -> None:
    """From now on others may pause this process, which leads a group of its own. Waits while one measures."""
    with _locked() as file:
        print(os.getpid(), file=file)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Around what is timed, not around what compiles. What is inside must not wait for others, nor for itself by
    another `alone`. What others have already given to the device runs on."""
    with _locked() as file:
        others = [int(line) for line in file if int(line) != os.getpid()]
        try:
            send(others, signal.SIGSTOP)
            yield
        finally:
            send(others, signal.SIGCONT)


def resume(leaders: list[int], environment: Mapping[str, str]) -> None:
    """Lets processes go on that one may have paused which has ended; waits while another measures."""
    with _locked(environment):
        send(leaders, signal.SIGCONT)


def send(leaders: list[int], which: signal.Signals) -> None:
    """Sends a signal to groups of processes; those that have ended do not get it."""
    for leader in leaders:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, which)
