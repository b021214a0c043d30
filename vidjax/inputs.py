"""Opens files that users name: regular files only, so that none is waited for, and none without an end is read."""

import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from vidjax.errors import InputError, reason
from vidjax.limits import MAX_FILE, from_json
from vidjax.storage import AnyPath

NAME_ANOTHER = "name a file that can be read"


def open_regular(path: str | Path, remedy: str = NAME_ANOTHER) -> BinaryIO:
    """Opens a regular file of a disk, or a link to one, to read its bytes; never waits for a pipe.

    Raises InputError, which ends with `remedy`, for a folder, a pipe, a device, and what does not open.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or half a character
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} can't be read ({why}): {remedy}") from None
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise InputError(f"{path} is {what}, not a file: {remedy}")
    return os.fdopen(number, "rb")


def read_bytes(path: str | AnyPath, most: int = MAX_FILE, remedy: str = NAME_ANOTHER) -> bytes:
    """The bytes of a regular file, or of an object in a bucket.

    Raises InputError as `open_regular` does, and for more than `most` bytes.
    """
    if isinstance(path, str | Path):
        with open_regular(path, remedy) as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(size) if size <= most else b""
    else:
        try:
            size = path.stat().length
            content = path.read_bytes() if size <= most else b""
        except OSError as error:
            raise InputError(f"{path} can't be read ({reason(error)}): {remedy}") from None
    if size > most:
        raise InputError(f"{path} has {size} bytes, {most} are the most: {remedy}")
    return content


def read_json(path: str | AnyPath, most: int = MAX_FILE, remedy: str = NAME_ANOTHER) -> Any:
    """The value in a JSON file. Raises InputError as `read_bytes` does, and for what is no JSON."""
    content = read_bytes(path, most, remedy)
    try:
        return from_json(content)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({reason(error)}): {remedy}") from None
