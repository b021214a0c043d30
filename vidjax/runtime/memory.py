"""Keeps the memory that one step frees for the next, on CPUs.

XLA takes the buffers of a step from the C library and frees them after it. glibc gives such large blocks back to the
operating system at once, which clears them page by page when the next step asks again: 0.93 s in place of 0.72 s for a
training step of an autoencoder with 322 MB of them (two cores, AMD EPYC). The price is that the process stays as large
as it once was.
"""

import ctypes
import os
import sys
from importlib.util import find_spec

PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin", "jax_rocm7_plugin", "libtpu")
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # malloc.h


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed, and to serve all threads from one arena.

    Programs call it first, before JAX has threads: a thread that took memory before keeps an arena of its own. It does
    nothing where JAX may find an accelerator, and without glibc.
    """
    if os.environ.get("JAX_PLATFORMS") != "cpu" and any(map(find_spec, PLUGINS)):
        return
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for parameter, value in ((TRIM_THRESHOLD, -1), (MMAP_MAX, 0), (ARENA_MAX, 1)):  # never, none, one
            libc.mallopt(parameter, value)
