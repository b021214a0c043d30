"""Checks the places that a program will write to before it works, so that a wrong one ends it at once, with one line.

Each function tries what the program will do at its end, removes what it made in trying, and returns the path. All raise
InputError, which names the flag.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from vidjax.errors import InputError
from vidjax.runtime.storage import AnyPath, check_writable, parse_local, parse_path


def open_folder(text: str, flag: str = "--out", *, disk: bool = False) -> AnyPath:
    """Checks a folder in which files will be made; with `disk` it may not be in a bucket."""
    path = _place(text, flag, disk)
    if isinstance(path, Path):
        with _explained(text, flag, "folder"), _made(path):
            probe = path / uuid.uuid4().hex
            probe.touch()
            probe.unlink()
    else:
        check_writable(path)
    return path


def open_new_folder(text: str, flag: str = "--out") -> Path:
    """Checks that a new folder can appear, whole: there may be an empty one."""
    path = _place(text, flag, disk=True)
    assert isinstance(path, Path)
    with _explained(text, flag, "folder"):
        if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
            raise InputError(f"{flag}={text} is not empty; name a new folder")
        with _made(path.parent):
            probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
            probe.mkdir()
            probe.rmdir()
    return path


def open_file(text: str, flag: str, *, disk: bool = False) -> AnyPath:
    """Checks a file that will be written or replaced; its folder need not exist."""
    path = _place(text, flag, disk)
    if not isinstance(path, Path):
        check_writable(path.parent)
        return path
    with _explained(text, flag, "file"):
        if path.is_symlink() and not path.exists():
            raise InputError(f"{flag}={text} is a link to nothing: name another file")
        if path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "no ordinary file"
            raise InputError(f"{flag}={text} is {what}: name a file")
        with _made(path.parent):
            probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
            probe.touch()
            probe.unlink()
        if path.exists():
            path.open("ab").close()
    return path


def _place(text: str, flag: str, disk: bool) -> AnyPath:
    path = parse_local(text, flag) if disk else parse_path(text, flag)
    return path.resolve() if isinstance(path, Path) and path.name in ("", "..") else path


@contextlib.contextmanager
def _explained(text: str, flag: str, what: str) -> Iterator[None]:
    """Turns an OSError of the block into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{flag}={text} can't be written ({error.strerror}): choose another {what}") from None


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder and those above it for the block, then removes what it made."""
    missing = []
    try:
        for each in reversed([folder, *folder.parents]):
            if not each.exists():
                each.mkdir()
                missing.append(each)
        yield
    finally:
        for each in reversed(missing):
            with contextlib.suppress(OSError):
                os.rmdir(each)
