"""Opens the folder that a run writes to, for one run at a time."""

import contextlib
import fcntl
import os
import re
import socket
import stat
from pathlib import Path
from typing import IO

from vidjax.errors import InputError
from vidjax.runtime.storage import AnyPath, check_writable

HOLDER = r"(process \d+ on .*\n)?"  # what a lock says
MAX_LOCK_CHARACTERS = 400
HELD: dict[Path, IO[str]] = {}  # locks by folder, which end with the process


def open_workdir(workdir: AnyPath) -> None:
    """Makes the folder and locks it until the process ends, which may open it again.

    A bucket is not locked: a run that is killed would leave its lock. Raises InputError if the folder can't be written
    or another process has locked it.
    """
    if not isinstance(workdir, Path):
        check_writable(workdir)
        print(f"{workdir} is in a bucket, which can't be locked: start only one run in it", flush=True)
        return
    whole = workdir.resolve()
    with contextlib.suppress(OSError, KeyError):
        if os.path.samestat(os.fstat(HELD[whole].fileno()), os.lstat(workdir / ".lock")):
            return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = _lock_file(workdir / ".lock")
    except OSError as error:
        raise InputError(f"--workdir={workdir} can't be written ({error.strerror}): choose another folder") from None
    holder = lock.read(MAX_LOCK_CHARACTERS)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"--workdir={workdir} is in use by {holder.strip() or 'another run'}: wait for it, or choose another folder"
        ) from None
    except OSError as error:
        print(f"warning: {workdir} can't be locked ({error.strerror}): start only one run in it", flush=True)
    if not re.fullmatch(HOLDER, holder):
        raise InputError(
            f"{workdir / '.lock'} is not a lock of this program: move it away, or choose another --workdir"
        )
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    HELD[whole] = lock


def _lock_file(path: Path) -> IO[str]:
    """Opens a lock to read and to append; makes it if there is none. Raises InputError for a link, which would be
    followed, and a pipe, which would be waited for."""
    if path.is_symlink():
        raise InputError(f"{path} is a link: move it away, or choose another --workdir")
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise InputError(f"{path} is not a file: move it away, or choose another --workdir")
    lock = os.fdopen(number, "a+", errors="replace")
    lock.seek(0)
    return lock
