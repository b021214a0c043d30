"""Turns SIGTERM, from a scheduler or a platform that takes its machine back, and SIGINT into a stop between steps."""

import os
import signal
import threading
from types import TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNAL_STATUS = 128  # plus the signal's number: not 0, so that launchers start it again
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Notice:
    """A context in which a signal is noted, for the loop to ask for after every step; a second SIGINT ends the program
    at once. A signal that was not asked for is sent again at the end.

    With several processes, a signal to one counts for all, and JAX finds the step, one or two ahead, that all can
    reach. JAX listens to SIGTERM; SIGINT is passed on as SIGTERM.
    """

    def __init__(self):
        self.signal = signal.SIGTERM  # the one that came
        self._received = self._answered = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Notice":
        if threading.current_thread() is threading.main_thread():
            alone = jax.process_count() == 1
            handlers = {number: self._receive for number in SIGNALS} if alone else {signal.SIGINT: self._hand_on}
            self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._received and not self._answered and error is None:
            os.kill(os.getpid(), self.signal)

    @property
    def status(self) -> int:
        """Exit status of a run that was stopped: 128 plus the signal's number."""
        return SIGNAL_STATUS + self.signal

    def _receive(self, number: int, frame: object) -> None:
        self._received, self.signal = True, signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _hand_on(self, number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGTERM)

    def stops_at(self, step: int) -> bool:
        """Returns whether `step` is the last one, alike on all processes, which all call it."""
        if jax.process_count() == 1:
            self._answered = self._received
            return self._received
        return multihost_utils.reached_preemption_sync_point(step)
