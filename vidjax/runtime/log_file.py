"""A file that grows while a program works and never stops it: what a full disk refuses is kept and tried again."""

import contextlib
import os
import sys
from collections import deque
from pathlib import Path

from vidjax.errors import reason

MAX_WAITING_BYTES = 2**26  # bytes that wait for a disk; what comes after these is lost


class LogFile:
    """Appends records to a file, whole and in order, on the calling thread; makes its folder.

    It raises no OSError: the first of a row becomes a warning, and each later call goes on where the last one stopped.
    `lost` counts records that found more than `MAX_WAITING_BYTES` waiting.
    """

    def __init__(self, path: Path):
        self.path, self.lost = path, 0
        self._left: deque[bytes] = deque()
        self._file, self._failing = -1, False

    def append(self, record: bytes) -> None:
        """Writes `record` behind those that wait, or lets it wait with them."""
        if sum(map(len, self._left)) + len(record) > MAX_WAITING_BYTES:
            self.lost += 1
            return
        self._left.append(record)
        self.flush()

    def flush(self) -> None:
        """Writes the records that wait, as far as the disk takes them."""
        try:
            if self._file < 0:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            while self._left:
                written = os.write(self._file, self._left[0])
                rest = self._left.popleft()[written:]
                if rest:
                    self._left.appendleft(rest)
        except OSError as error:
            if not self._failing:
                with contextlib.suppress(OSError):  # stderr may lie on the same disk
                    print(
                        f"warning: {self.path} can't be written now ({error.strerror or reason(error)}): "
                        "it is tried again, and nothing waits for it",
                        file=sys.stderr,
                        flush=True,
                    )
            self._failing = True
        else:
            self._failing = False

    def close(self) -> None:
        """Writes what the disk takes and closes the file."""
        self.flush()
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = -1
