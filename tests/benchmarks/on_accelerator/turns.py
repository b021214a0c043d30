"""Items that run at once take turns: all may compile together, but what one measures, it measures alone.

A lock on one file: whoever compiles shares it, whoever measures has it for itself.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator

FILE = "VIDJAX_BENCHMARK_TURNS"  # names the file; where it is not set, nobody else is there


@contextlib.contextmanager
def _held(kind: int) -> Iterator[None]:
    with open(os.environ.get(FILE, os.devnull)) as file:
        if FILE in os.environ:
            fcntl.flock(file, kind)
        yield


def together() -> contextlib.AbstractContextManager[None]:
    """Around what would disturb a measurement: compiling, checking against the CPU."""
    return _held(fcntl.LOCK_SH)


def alone() -> contextlib.AbstractContextManager[None]:
    """Around what is timed. Not inside `together`, where it would wait for itself."""
    return _held(fcntl.LOCK_EX)
