"""The folder that a run writes to, held by one run at a time."""

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from vidjax.errors import InputError

HELD: list[IO[str]] = []  # locks, which end with the process


def open_workdir(workdir: Path) -> None:
    """Make the folder, and hold it until the process ends. Raises InputError if it can't be written or is held."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("a+")
    except OSError as error:
        raise InputError(f"--workdir={workdir} can't be written ({error.strerror}): choose another folder") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise InputError(
            f"--workdir={workdir} is in use by {lock.read().strip() or 'another run'}: wait for it, or choose another "
            "folder"
        ) from None
    except OSError as error:
        print(f"warning: {workdir} can't be locked ({error.strerror}): start only one run in it", flush=True)
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    HELD.append(lock)
