"""Shows how far work is: a bar on a terminal, elsewhere a line every `LINE_SECONDS` with the time that is left."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from vidjax.runtime.processes import lead, say

T = TypeVar("T")
LINE_SECONDS = 10.0


def format_duration(seconds: float) -> str:
    """Writes a duration in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def show_progress(what: str, unit: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Yields `report(done)`, which may be called from any thread. Only the first process prints."""
    if not lead():
        yield lambda done: None
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=what, unit=unit, total=total) as bar:

            def advance(done: int) -> None:
                bar.update(int(done) - bar.n)

            yield advance
    else:
        began = told = time.monotonic()
        say(f"{what}: {total} {unit}s" if total else what)

        def report(done: int) -> None:
            nonlocal told
            now = time.monotonic()
            if now - told >= LINE_SECONDS and done:
                told = now
                of = f" of {total}" if total else ""
                left = f", {format_duration((now - began) / int(done) * (total - int(done)))} left" if total else ""
                say(f"{what} {int(done)}{of} {unit}s{left}")

        yield report


def watch(items: Iterable[T], what: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yields the items while `show_progress` shows how many are done."""
    with show_progress(what, unit, total) as report:
        for done, item in enumerate(items, 1):
            yield item
            report(done)


def count_off(items: Sequence[T], what: str) -> Iterator[T]:
    """Prints a line before each item and yields it: for few items that take long."""
    began = time.monotonic()
    for i, item in enumerate(items):
        left = f", {format_duration((time.monotonic() - began) / i * (len(items) - i))} left" if i else ""
        say(f"{what} {i + 1} of {len(items)}{left}")
        yield item
