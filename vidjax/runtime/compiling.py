"""`jit`: `jax.jit` with what the compiler of the machine at hand has to be told."""

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


def jit(function: Callable, **options: Any) -> Any:
    """For a function that is not called within another jitted one: JAX takes such options only from the outermost. Made
    where the mesh is set that it will run on."""
    return jax.jit(function, compiler_options=known() if platform() == "cpu" else None, **options)


@functools.cache
def known() -> dict[str, str] | None:
    """`CPU` if JAX's compiler for CPUs, which is free to forget them, knows these options."""
    try:
        jax.jit(lambda: 0, compiler_options=CPU).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return CPU
