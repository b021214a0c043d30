"""The folder that a run writes to, held by one run at a time."""

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from vidjax.errors import InputError
from vidjax.storage import AnyPath, check_writable

HELD: list[IO[str]] = []  # locks, which end with the process


def open_workdir(workdir: AnyPath) -> None:
    """Make the folder, and hold it until the process ends; a bucket can't be held: a run that is killed would leave its
    lock. Raises InputError if it can't be written or is held."""
    if not isinstance(workdir, Path):
        check_writable(workdir)
        print(f"{workdir} is in a bucket, which can't be locked: start only one run in it", flush=True)
        return
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
