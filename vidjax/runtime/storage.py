"""Folders on a disk (`Path`) or in a bucket (`epath.Path`), and what the two do not do alike.

An object in a bucket appears whole or not at all, cannot be appended to, and wants no folder to lie in.
"""

import contextlib
import functools
import importlib.util
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from vidjax.errors import InputError, reason

AnyPath = Path | epath.Path
LONGEST = 4000, 255  # bytes of a path, and of each name in it
WAIT = 20  # seconds for a bucket's first answers


def path_of(text: str, flag: str = "--workdir") -> AnyPath:
    """A folder's path, or that of a bucket's, `gs://BUCKET/FOLDER`, which is there and answers. Raises InputError."""
    if "://" not in text:
        return local(text, flag)
    if not (found := re.fullmatch(r"gs://([^/]+)/+[^/].*", text)):
        raise InputError(
            f"{flag}={text} is no folder of a disk and no gs://BUCKET/FOLDER: name one, or mount it and name the mount"
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(f"{flag}={text} wants the library gcsfs: pip install 'vidjax[gcs]'")
    try:
        _bucket(found[1])
    except Exception as error:  # of four libraries
        raise _refused(text, "reached", error) from None
    return epath.Path(text)


def local(text: str, flag: str = "--out") -> Path:
    """A path that must be of a disk. Raises InputError."""
    if "://" in text:
        raise InputError(f"{flag}={text} is no folder of a disk: name one, and copy it when it is done")
    try:
        name = os.fsencode(text)
    except UnicodeEncodeError:
        raise InputError(f"{flag}={text!r} is no name that a disk can have: name another place") from None
    if b"\0" in name:
        raise InputError(f"{flag}={text} has a zero byte in it: name another place")
    if len(name) > LONGEST[0] or max(map(len, name.split(b"/"))) > LONGEST[1]:
        raise InputError(f"{flag}={text} is too long: name another place")
    return Path(text)


def check_writable(path: AnyPath) -> None:
    """Raises InputError if a bucket takes and deletes no objects there; a disk says so when it is written to."""
    if isinstance(path, Path):
        return
    bucket, _, name = os.fspath(path / f".probe-{uuid.uuid4().hex}").removeprefix("gs://").partition("/")
    try:
        probe = _bucket(bucket).blob(name)
        probe.upload_from_string(b"", timeout=WAIT, retry=None)
        probe.delete(timeout=WAIT, retry=None)
    except Exception as error:
        raise _refused(path, "written", error) from None


@functools.cache
def _bucket(name: str) -> Any:
    """As Google's own library knows it, the only one of those that read and write here which can be told not to try
    for minutes."""
    import fsspec
    from google.cloud import storage

    os.environ["EPATH_USE_TF"] = "false"  # TensorFlow, where it is installed, would do epath's work, without gcsfs
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # of errors that are caught it shows tracebacks
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False  # others write to the bucket, too
    return storage.Client().get_bucket(name, timeout=WAIT, retry=None)


def _refused(path: Any, done: str, error: Exception) -> InputError:
    return InputError(
        f"{path} can't be {done} ({reason(error)}): log in (gcloud auth application-default login), and have the roles "
        "Storage Object User and Storage Legacy Bucket Reader on the bucket"
    )


def absolute(path: str | AnyPath) -> AnyPath:
    return path if isinstance(path, epath.Path) else Path(path).absolute()


def modified(path: AnyPath) -> float:
    """When, in seconds since 1970."""
    found = path.stat()
    return float(found.st_mtime if isinstance(path, Path) else found.mtime)


def set_aside(path: AnyPath, ending: str) -> AnyPath:
    """Renames what lies at `path`, and returns the first free name of the kind PATH.ending that it has now."""
    names = (path.with_name(f"{path.name}.{ending}{n or ''}") for n in range(1000))
    return path.rename(next(name for name in names if not name.exists()))


def listing(folder: AnyPath, code: Callable[[Path], int] | None = None) -> dict[str, list]:
    """[bytes, code of the contents] by path of all files under a folder: `code`'s on a disk, a bucket knows one."""
    if isinstance(folder, Path):
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): [path.stat().st_size, code and code(path)] for path in paths}
    import fsspec

    found = fsspec.filesystem("gcs").find(os.fspath(folder), detail=True)
    root = len(os.fspath(folder).removeprefix("gs://")) + 1
    return {name[root:]: [info["size"], info["crc32c"]] for name, info in found.items()}


@contextlib.contextmanager
def whole_file(path: str | AnyPath) -> Iterator[Path]:
    """Yields a path on a disk to write to; what is there when the block ends becomes `path`, on a disk or in a bucket.

    The folder of `path` is made. No reader ever sees half of the file, not even if the program is killed; several may
    write at once; if the block raises, what was at `path` stays.
    """
    if not isinstance(path, epath.Path):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        yield file
        path.write_bytes(file.read_bytes())


def write_json(path: str | AnyPath, value: Any) -> None:
    """Writes `value` as an indented JSON file, whole."""
    text = json.dumps(value, indent=1) + "\n"
    with whole_file(path) as part:
        part.write_text(text)


@contextlib.contextmanager
def whole_folder(out: Path, flag: str = "--out") -> Iterator[Path]:
    """Yields a new folder to write in, which becomes `out` when the block ends, and is removed if it raises.

    It lies beside `out` under a name that nothing else has, and nothing that was there before is touched. Raises
    InputError, before the block, unless `out` is new or an empty folder, and can be made.
    """
    out = Path(os.path.abspath(out))
    taken, part = False, out.parent / f"{out.name[:40]}.{uuid.uuid4().hex[:12]}.part"
    try:
        with contextlib.suppress(FileNotFoundError):
            taken = not stat.S_ISDIR(os.lstat(out).st_mode) or any(out.iterdir())
        if not taken:
            part.mkdir(parents=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{flag}={out} can't be written ({why}): name another folder") from None
    if taken:
        raise InputError(f"{flag}={out} is not empty; name a new folder")
    try:
        yield part
        try:
            part.rename(out)  # an empty folder gives way
        except OSError as error:
            raise InputError(f"{flag}={out} can't be made ({error.strerror}): name another folder") from None
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


class Growing:
    """A folder whose files grow: written in `here`, which is the folder, or a copy that `copy` brings to the bucket."""

    def __init__(self, folder: AnyPath):
        self.folder, self._sizes = folder, {}
        self._copy = None if isinstance(folder, Path) else tempfile.TemporaryDirectory()
        self.here = Path(self._copy.name if self._copy else folder)

    def copy(self) -> None:
        """What has grown, whole: no object can be appended to. A bucket that does not answer gets it the next time."""
        for name, (size, _) in listing(self.here).items() if self._copy else ():
            if self._sizes.get(name) != size:
                try:
                    (self.folder / name).write_bytes((self.here / name).read_bytes())
                except Exception as error:
                    print(f"warning: {self.folder / name} can't be written now ({reason(error)})", flush=True)
                else:
                    self._sizes[name] = size
