"""A notice to stop: SIGTERM, from a scheduler, a user, or a platform that takes its machine back."""

import signal
import threading
from types import TracebackType

import jax
from jax.experimental import multihost_utils

STATUS = 128 + signal.SIGTERM  # the exit status of a run that was stopped: not 0, so that launchers start it again


class Notice:
    """While this context is open SIGTERM only makes a note, and the loop asks for it after every step.

    Over processes a notice to any of them counts for all, and JAX finds the step, one or two ahead, that all can reach.
    """

    def __init__(self):
        self._received, self._before = False, None

    def __enter__(self) -> "Notice":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _receive(self, number: int, frame: object) -> None:
        self._received = True

    def stops_at(self, step: int) -> bool:
        """Whether this step is the last one; all processes get the same answer."""
        if jax.process_count() == 1:
            return self._received
        return multihost_utils.reached_preemption_sync_point(step)
