"""Writes tracebacks of libraries to a file: the user reads one line, from the code that meets the error."""

import logging
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from absl import logging as absl_logging

from vidjax.runtime.log_file import LogFile


def send_aside(path: Path) -> None:
    """Sends tracebacks to `path` in place of stderr from now on: those that libraries log, and those of errors that end
    a thread or reach no caller. The file appears with the first one."""
    log, lock = LogFile(path), threading.RLock()

    def write(text: str) -> None:
        with lock:
            log.append(f"{text.rstrip()}\n\n".encode(errors="backslashreplace"))

    def passes(record: logging.LogRecord) -> bool:
        if not record.exc_info or record.name.partition(".")[0] == "vidjax":
            return True
        write(logging.Formatter("%(asctime)s %(name)s: %(message)s").format(record))
        return False

    def of_a_thread(args: threading.ExceptHookArgs) -> None:
        shown = "".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback))
        write(f"in thread {args.thread and args.thread.name}: {shown}")

    def unraisable(args: Any) -> None:
        shown = "".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback))
        write(f"{args.err_msg or 'an error that no caller got'}: {shown}")

    absl_logging.get_absl_handler().addFilter(passes)
    threading.excepthook, sys.unraisablehook = of_a_thread, unraisable
