"""Lists the sizes and checksums of a folder's files, and finds the files that have changed since."""

import zlib
from pathlib import Path

from vidjax.errors import InputError
from vidjax.runtime.inputs import read_json
from vidjax.runtime.storage import AnyPath, list_files, write_json

LIST_FILE = "files.json"
TIMES_FILE = "_CHECKPOINT_METADATA"


def write(folder: AnyPath) -> None:
    """Writes the list of all files in the subfolders of `folder`: sizes, and CRC-32 on a disk or the bucket's
    CRC-32C."""
    listed = {name: about for name, about in list_files(folder, crc32).items() if "/" in name}
    write_json(folder / LIST_FILE, listed)


def find_damage(folder: AnyPath, contents: bool = False) -> str | None:
    """Says what is wrong with a folder; None if nothing is, or if it has no list.

    Sizes are compared, and with `contents` checksums, for which a disk reads the files. Files that were copied between
    a disk and a bucket have checksums of another kind, and are compared by size alone.
    """
    if wrong := find_damaged_times(folder / TIMES_FILE):
        return wrong
    if not (folder / LIST_FILE).exists():  # of an older version
        return None if any(folder.iterdir()) else "it is empty"
    try:
        listed = {str(name): (size, code) for name, (size, code) in read_json(folder / LIST_FILE).items()}
    except (InputError, AttributeError, TypeError, ValueError):
        return f"{LIST_FILE} is cut off or damaged"
    there = list_files(folder, crc32 if contents else None)
    for name, (size, code) in listed.items():
        found, now = there.get(name, (None, None))
        if found != size:
            return f"{name} is missing" if found is None else f"{name} has {found} of {size} bytes"
        if now != code and type(now) is type(code):
            return f"{name} holds other bytes than were written"
    return None


def find_damaged_times(path: AnyPath) -> str | None:
    """Says what is wrong with Orbax's note on a checkpoint; None if nothing is. A damaged one keeps Orbax from reading
    any checkpoint of the folder."""
    try:
        note = read_json(path) if path.exists() else {}
        times = [note.get(name) or 1 for name in ("init_timestamp_nsecs", "commit_timestamp_nsecs")]
        right = isinstance(note.get("item_handlers") or {}, dict | str) and all(0 < time < 2**62 for time in times)
    except (InputError, AttributeError, TypeError):
        right = False
    return None if right else f"{path.name} is damaged"


def crc32(path: Path) -> int:
    """Returns the CRC-32 of a file, read a megabyte at a time."""
    code = 0
    with path.open("rb") as file:
        while piece := file.read(2**20):
            code = zlib.crc32(piece, code)
    return code
