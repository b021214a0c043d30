"""What compiling costs a run: seconds, programs, and how many of these the cache spared it."""

import dataclasses

import jax

READY = "/jax/core/compile/backend_compile_duration"  # seconds until a program is there, compiled or read
READ = "/jax/compilation_cache/cache_hits"


@dataclasses.dataclass
class Compiled:
    """`cached` of the `programs` were read from the cache; `seconds` are those of all."""

    seconds: float = 0.0
    programs: int = 0
    cached: int = 0

    def __sub__(self, before: "Compiled") -> "Compiled":
        return Compiled(self.seconds - before.seconds, self.programs - before.programs, self.cached - before.cached)

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, {self.cached} of {self.programs} from the cache"


_total = Compiled()


def so_far() -> Compiled:
    """By this process, since this file was imported."""
    return dataclasses.replace(_total)


def _took(event: str, seconds: float, **_: str | int) -> None:
    if event == READY:
        _total.seconds += seconds
        _total.programs += 1


def _happened(event: str, **_: str | int) -> None:
    _total.cached += event == READ


jax.monitoring.register_event_duration_secs_listener(_took)
jax.monitoring.register_event_listener(_happened)
