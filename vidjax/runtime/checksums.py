"""Whether the files of a folder are those that were written: their sizes and checksums, in a list beside them."""

import json
import zlib
from pathlib import Path

from vidjax.errors import InputError
from vidjax.runtime.inputs import read_json
from vidjax.runtime.storage import AnyPath, listing

LIST = "files.json"
TIMES = "_CHECKPOINT_METADATA"


def write(folder: AnyPath) -> None:
    """List all files in the folders of one, in it: CRC-32 on a disk, in a bucket the CRC-32C that it keeps of each."""
    listed = {name: about for name, about in listing(folder, crc).items() if "/" in name}
    (folder / LIST).write_text(json.dumps(listed, indent=1) + "\n")


def damage(folder: AnyPath, contents: bool = False) -> str | None:
    """What is wrong with a folder, None if nothing is or it has no list. With `contents` the files are read, too (a
    bucket compares them anyway); of those that were copied from a disk to a bucket, or back, only sizes can be."""
    if wrong := damaged_times(folder / TIMES):
        return wrong
    if not (folder / LIST).exists():  # of an older version
        return None if any(folder.iterdir()) else "it is empty"
    try:
        listed = {str(name): (size, code) for name, (size, code) in read_json(folder / LIST).items()}
    except (InputError, AttributeError, TypeError, ValueError):
        return f"{LIST} is cut off or damaged"
    there = listing(folder, crc if contents else None)
    for name, (size, code) in listed.items():
        found, now = there.get(name, (None, None))
        if found != size:
            return f"{name} is missing" if found is None else f"{name} has {found} of {size} bytes"
        if now != code and type(now) is type(code):
            return f"{name} holds other bytes than were written"
    return None


def damaged_times(path: AnyPath) -> str | None:
    """What is wrong with Orbax's own note on a checkpoint: one that it cannot read keeps it from reading any."""
    try:
        note = read_json(path) if path.exists() else {}
        times = [note.get(name) or 1 for name in ("init_timestamp_nsecs", "commit_timestamp_nsecs")]
        right = isinstance(note.get("item_handlers") or {}, dict | str) and all(0 < time < 2**62 for time in times)
    except (InputError, AttributeError, TypeError):
        right = False
    return None if right else f"{path.name} is damaged"


def crc(path: Path) -> int:
    """CRC-32 of a file, a megabyte at a time."""
    code = 0
    with path.open("rb") as file:
        while piece := file.read(2**20):
            code = zlib.crc32(piece, code)
    return code
