"""Whether the files of a folder are those that were written: their sizes and CRC-32, in a list beside them."""

import json
import zlib
from pathlib import Path

LIST = "files.json"


def write(folder: Path) -> None:
    """List all files of a folder, in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.parent != folder)
    listed = {path.relative_to(folder).as_posix(): [path.stat().st_size, crc(path)] for path in paths}
    (folder / LIST).write_text(json.dumps(listed, indent=1) + "\n")


def damage(folder: Path, contents: bool = False) -> str | None:
    """What is wrong with a folder, None if nothing is or it has no list. With `contents` the files are read, too."""
    try:
        listed = json.loads((folder / LIST).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return f"{LIST} is cut off"
    for name, (size, code) in listed.items():
        path = folder / name
        found = path.stat().st_size if path.exists() else None
        if found != size:
            return f"{name} is missing" if found is None else f"{name} has {found} of {size} bytes"
        if contents and crc(path) != code:
            return f"{name} holds other bytes than were written"
    return None


def crc(path: Path) -> int:
    """CRC-32 of a file, a megabyte at a time."""
    code = 0
    with path.open("rb") as file:
        while piece := file.read(2**20):
            code = zlib.crc32(piece, code)
    return code
