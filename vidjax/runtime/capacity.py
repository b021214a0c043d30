"""Refuses what cannot fit into memory, with the number, before anything is compiled or allocated for it."""

import os
from pathlib import Path

import jax

from vidjax.errors import InputError

GIB = 2**30


def measure_device_memory() -> int:
    """Returns the bytes of memory of the devices of all processes; CPUs share what is free in the machine."""
    devices = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    if all(limits):
        return sum(limit for limit in limits if limit) * jax.process_count()
    return measure_free_memory() * jax.process_count()


def measure_free_memory() -> int:
    """Returns the bytes that this machine can give without swapping, or all of its memory where the system does not
    say."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(need: int | float, what: str, change: str) -> None:
    """Raises InputError if `need`, the least bytes that `what` takes, is more than the devices have; `change` tells the
    user what to do."""
    there = measure_device_memory()
    if need > there:
        raise InputError(
            f"{what}: that takes at least {need / GIB:,.0f} GiB of memory, there are {there / GIB:,.0f}; {change}"
        )
