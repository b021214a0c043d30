"""`jit` is `jax.jit` with the options that this machine's compiler needs; what compiling has cost is counted."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from vidjax.runtime.platforms import platform

# jaxlib 0.10's CPU compiler gives reductions, matrix products and convolutions, with what surrounds them, to a library.
# Of these only matrix products by themselves are left to it:
# - Reductions together with what they sum come out wrong, up to not a number, or end the process: see the tests, and
#   jax's issues 39103, 39257 and 40412.
# - Its convolutions use one core. Milliseconds forward and backward with (3, 3) kernels on two AVX-512 cores, its and
#   the compiler's own: 4 x 32 x 32 x 128 7 + 25, 6 + 18; 4 x 32 x 32 x 320 52 + 153, 31 + 70.
CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


READY = "/jax/core/compile/backend_compile_duration"  # seconds until a program is there, compiled or read
READ = "/jax/compilation_cache/cache_hits"


def jit(function: Callable, **options: Any) -> Any:
    """Returns `function` jitted, as `jax.jit` with `options` does, for the mesh that is set now.

    It must not be called within another jitted function: JAX takes compiler options only from the outermost.
    """
    return jax.jit(function, compiler_options=known_options() if platform() == "cpu" else None, **options)


@functools.cache
def known_options() -> dict[str, str] | None:
    """Returns `CPU`, or None if JAX's compiler for CPUs does not know these options: they are not API."""
    try:
        jax.jit(lambda: 0, compiler_options=CPU).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return CPU


@dataclasses.dataclass
class Compiled:
    """Compiled programs, the seconds that they took, and how many of them came from the cache; `-` gives a span's."""

    seconds: float = 0.0
    programs: int = 0
    cached: int = 0

    def __sub__(self, before: "Compiled") -> "Compiled":
        return Compiled(self.seconds - before.seconds, self.programs - before.programs, self.cached - before.cached)

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, {self.cached} of {self.programs} from the cache"


def count_compiled() -> Compiled:
    """Counts compiled programs, compile time and cache hits of this process, from the first call on."""
    return dataclasses.replace(_listen())


@functools.cache
def _listen() -> Compiled:
    """The count, which JAX's events carry on."""
    total = Compiled()

    def took(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == READY:
            total.seconds += duration_secs
            total.programs += 1

    def happened(event: str, **kwargs: str | int) -> None:
        total.cached += event == READ

    jax.monitoring.register_event_duration_secs_listener(took)
    jax.monitoring.register_event_listener(happened)
    return total
