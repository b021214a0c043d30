"""Event files of TensorBoard, written by the thread that calls and not, as `SummaryWriter` does, by one that a full
disk ends: its queue then blocks whoever logs."""

import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

from vidjax.runtime.log_file import LogFile


class EventFile:
    """A new event file in `folder`; TensorBoard hides what earlier ones there hold from `purge_step` on."""

    def __init__(self, folder: Path, purge_step: int):
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event: Any = event_pb2  # their classes are made at run time
        self.summary: Any = summary_pb2.Summary
        self._log = LogFile(folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}")
        self._add(file_version="brain.Event:2")
        self._add(step=purge_step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def add(self, step: int, *values: Any) -> None:
        """Values are `Summary.Value`s."""
        self._add(step=step, summary=self.summary(value=values))

    def _add(self, **fields: Any) -> None:
        """One record: the length, its checksum, the event, its checksum."""
        from tensorboardX.record_writer import masked_crc32c

        data = self._event.Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        self._log.append(length + sums[0] + data + sums[1])

    def flush(self) -> None:
        """Writes what was added so far to the disk."""
        self._log.flush()

    def close(self) -> None:
        """Writes the rest and closes the file."""
        self._log.close()
