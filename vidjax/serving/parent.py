"""Ends a process with the one that started it."""

import multiprocessing
import os
import threading
import time


def watch_parent(pid: int | None = None) -> None:
    """Ends this process as soon as the one that started it is gone, also in the middle of a step, or if it is gone
    already: process `pid`, by default the one that `multiprocessing` knows."""
    starter = multiprocessing.parent_process()
    parent = pid or (starter.pid if starter else os.getppid())

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.25)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
