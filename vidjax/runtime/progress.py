"""Says how far work is: a bar on a terminal, elsewhere a line now and then with the time that is left."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from vidjax.runtime.processes import lead, say

T = TypeVar("T")
SECONDS = 10.0  # between two lines


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def shown(what: str, unit: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Gives `report(done)`, which may be called from any thread; the first process alone talks."""
    if not lead():
        yield lambda done: None
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=what, unit=unit, total=total) as bar:
            yield lambda done: bar.update(int(done) - bar.n) and None
    else:
        began = told = time.monotonic()
        say(f"{what}: {total} {unit}s" if total else what)

        def report(done: int) -> None:
            nonlocal told
            now = time.monotonic()
            if now - told >= SECONDS and done:
                told = now
                of = f" of {total}" if total else ""
                left = f", {duration((now - began) / int(done) * (total - int(done)))} left" if total else ""
                say(f"{what} {int(done)}{of} {unit}s{left}")

        yield report


def watched(items: Iterable[T], what: str, unit: str, total: int | None = None) -> Iterator[T]:
    """The items, while `shown` shows how many were worked off."""
    with shown(what, unit, total) as report:
        for done, item in enumerate(items, 1):
            yield item
            report(done)


def counted(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, each after a line: for few that take long."""
    began = time.monotonic()
    for i, item in enumerate(items):
        left = f", {duration((time.monotonic() - began) / i * (len(items) - i))} left" if i else ""
        say(f"{what} {i + 1} of {len(items)}{left}")
        yield item
