"""Opens files that users name: regular files only, since a pipe would be waited for and a device has no end."""

import codecs
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from vidjax.errors import InputError, reason
from vidjax.runtime.limits import MAX_FILE, from_json
from vidjax.runtime.storage import AnyPath

NAME_ANOTHER = "name a file that can be read"


def open_regular(path: str | Path, remedy: str = NAME_ANOTHER) -> BinaryIO:
    """Opens a regular file on a disk, or a link to one, to read its bytes; never waits for a pipe.

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
    """Reads a regular file, or an object in a bucket.

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


def encoding_of(beginning: bytes) -> str:
    """Returns the encoding that a text's byte order mark names, or UTF-8."""
    if beginning.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    return "utf-16" if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def decode(content: bytes, name: object, whole: bool = True) -> str:
    """Decodes UTF-8, or UTF-16 or UTF-32 with a byte order mark, which is removed; without `whole`, content may end
    inside a character.

    Raises InputError, with the file's `name` and the line, for any other encoding: none is guessed.
    """
    encoding = encoding_of(content[:4])
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(content, final=whole)
        place = text.find("\0")  # UTF-16 without its mark
        line = text.count("\n", 0, place) + 1
    except UnicodeDecodeError as error:
        place, line = error.start, content.count(b"\n", 0, error.start) + 1
    if place >= 0:
        raise InputError(f"{name}, line {line} is not {encoding[:6].upper().rstrip('-')}: save the file as UTF-8")
    return text


def read_json(path: str | AnyPath, most: int = MAX_FILE, remedy: str = NAME_ANOTHER) -> Any:
    """Reads a JSON file. Raises InputError as `read_bytes` does, and if it is not JSON."""
    content = read_bytes(path, most, remedy)
    try:
        return from_json(content)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({reason(error)}): {remedy}") from None
