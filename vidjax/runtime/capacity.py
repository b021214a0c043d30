"""Refuses what cannot fit into memory before anything is compiled or allocated for it, with the number."""

import os
from pathlib import Path

import jax

from vidjax.errors import InputError

GIB = 2**30


def memory_of_devices() -> int:
    """Bytes that the devices of all processes have; CPUs share what is free in the machine."""
    devices = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    if all(limits):
        return sum(limit for limit in limits if limit) * jax.process_count()
    return free_memory() * jax.process_count()


def free_memory() -> int:
    """Bytes that this machine's programs can still have without swapping; where that is not told, all there are."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(need: int | float, what: str, change: str) -> None:
    """Raises InputError if `need`, the least number of bytes that `what` takes, is more than there are."""
    there = memory_of_devices()
    if need > there:
        raise InputError(
            f"{what}: that takes at least {need / GIB:,.0f} GiB of memory, there are {there / GIB:,.0f}; {change}"
        )
