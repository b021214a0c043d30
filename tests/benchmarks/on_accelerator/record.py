"""One JSON file for a whole run, written again with every figure: a run that is cut loses nothing."""

import fcntl
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidjax.runtime.storage import write_json


class Record:
    """The figures in `file`, nested by name. Processes may write at once."""

    def __init__(self, file: Path):
        self.file = file

    def read(self) -> dict[str, Any]:
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def get(self, *place: str) -> Any:
        """What stands at that place, {} if nothing does."""
        found = self.read()
        for name in place:
            found = found.get(name, {})
        return found

    def put(self, place: Sequence[str], value: Any) -> None:
        with self.file.with_name(f"{self.file.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            figures = inside = self.read()
            for name in place[:-1]:
                inside = inside.setdefault(name, {})
            inside[place[-1]] = to_plain(value)
            write_json(self.file, figures)


def to_plain(value: Any) -> Any:
    """The value as JSON has it; numbers that are not finite become words."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(each) for each in value]
    if isinstance(value, bool | str | int) or value is None:
        return value
    return float(value) if math.isfinite(value) else str(float(value))
