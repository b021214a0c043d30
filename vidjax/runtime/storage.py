"""Folders on a disk (`Path`) or in a bucket (`epath.Path`), and what differs between the two.

An object in a bucket appears whole or not at all, cannot be appended to, and needs no folder.
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
MAX_PATH_BYTES = 4000, 255  # of a path, and of each name in it
BUCKET_SECONDS = 20  # for its first answers


def parse_path(text: str, flag: str = "--workdir") -> AnyPath:
    """Returns the path of a folder on a disk, or in a bucket that answers, `gs://BUCKET/FOLDER`. Raises InputError."""
    if "://" not in text:
        return parse_local(text, flag)
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


def parse_local(text: str, flag: str = "--out") -> Path:
    """Returns a path on a disk. Raises InputError if `text` is an address, or no name that a disk can have."""
    if "://" in text:
        raise InputError(f"{flag}={text} is no folder of a disk: name one, and copy it when it is done")
    try:
        name = os.fsencode(text)
    except UnicodeEncodeError:
        raise InputError(f"{flag}={text!r} is no name that a disk can have: name another place") from None
    if b"\0" in name:
        raise InputError(f"{flag}={text} has a zero byte in it: name another place")
    if len(name) > MAX_PATH_BYTES[0] or max(map(len, name.split(b"/"))) > MAX_PATH_BYTES[1]:
        raise InputError(f"{flag}={text} is too long: name another place")
    return Path(text)


def check_writable(path: AnyPath) -> None:
    """Raises InputError if a bucket does not take and delete objects at `path`; a disk says so when it is written
    to."""
    if isinstance(path, Path):
        return
    bucket, _, name = os.fspath(path / f".probe-{uuid.uuid4().hex}").removeprefix("gs://").partition("/")
    try:
        probe = _bucket(bucket).blob(name)
        probe.upload_from_string(b"", timeout=BUCKET_SECONDS, retry=None)
        probe.delete(timeout=BUCKET_SECONDS, retry=None)
    except Exception as error:
        raise _refused(path, "written", error) from None


@functools.cache
def _bucket(name: str) -> Any:
    """Opens a bucket with Google's own library, the only one here that can be told not to try for minutes."""
    from fsspec.config import conf
    from google.cloud import storage

    os.environ["EPATH_USE_TF"] = "false"  # TensorFlow, where it is installed, would do epath's work, without gcsfs
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # of errors that are caught it shows tracebacks
    conf.setdefault("gcs", {})["use_listings_cache"] = False  # others write to the bucket, too
    once: dict[str, Any] = dict(timeout=BUCKET_SECONDS, retry=None)
    return storage.Client().get_bucket(name, **once)


def _refused(path: Any, done: str, error: Exception) -> InputError:
    return InputError(
        f"{path} can't be {done} ({reason(error)}): log in (gcloud auth application-default login), and have the roles "
        "Storage Object User and Storage Legacy Bucket Reader on the bucket"
    )


def absolute(path: str | AnyPath) -> AnyPath:
    """Returns an absolute path; that of a bucket is one."""
    return path if isinstance(path, epath.Path) else Path(path).absolute()


def modification_time(path: AnyPath) -> float:
    """Returns when a file was last written, in seconds since 1970."""
    return path.stat().st_mtime if isinstance(path, Path) else float(path.stat().mtime)


def set_aside(path: AnyPath, ending: str) -> AnyPath:
    """Renames `path` to the first free name of PATH.ending, PATH.ending1, ..., and returns that."""
    names = (path.with_name(f"{path.name}.{ending}{n or ''}") for n in range(1000))
    return path.rename(next(name for name in names if not name.exists()))


def list_files(folder: AnyPath, code: Callable[[Path], int] | None = None) -> dict[str, list]:
    """Returns [bytes, checksum] by relative path of all files under a folder; `code` computes the checksum on a disk,
    in a bucket it is the CRC-32C that the bucket stores."""
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
    """A folder whose files grow. Programs write in `here`: the folder itself, or its copy, which `copy` uploads."""

    def __init__(self, folder: AnyPath):
        self.folder, self._sizes = folder, {}
        self._copy = None if isinstance(folder, Path) else tempfile.TemporaryDirectory()
        self.here = Path(self._copy.name if self._copy else folder)

    def copy(self) -> None:
        """Uploads files that have grown, whole, as objects cannot be appended to. One that fails is tried the next
        time."""
        for name, (size, _) in list_files(self.here).items() if self._copy else ():
            if self._sizes.get(name) != size:
                try:
                    (self.folder / name).write_bytes((self.here / name).read_bytes())
                except Exception as error:
                    print(f"warning: {self.folder / name} can't be written now ({reason(error)})", flush=True)
                else:
                    self._sizes[name] = size
