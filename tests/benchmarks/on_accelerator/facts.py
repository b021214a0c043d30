"""What machine this is, and which software."""

import datetime
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import jax

from vidjax import __version__
from vidjax.profiling import chips

LISTED = re.compile(r"jax|libtpu|nvidia|flax|optax|orbax|grain|numpy|triton|tokamax", re.IGNORECASE)


def gather(small: bool) -> Iterator[tuple[str, Any]]:
    device, host = jax.devices()[0], jax.devices("cpu")[0]
    chip = chips.of_device(device)
    yield "date", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    yield "machine", f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}"
    yield "device", {"kind": device.device_kind, "count": jax.device_count(), "platform": device.platform}
    yield "host", str(host)
    yield "memory_gib", (device.memory_stats() or {}).get("bytes_limit", 0) / chips.GIB
    yield "data_sheet", chip and {"flops": chip.flops, "memory_gib": chip.memory / chips.GIB, "bytes": chip.bandwidth}
    yield "client", device.client.platform_version
    found = sorted({each.metadata["Name"]: each.version for each in distributions()}.items())
    packages = {name: number for name, number in found if LISTED.search(name)}
    yield "versions", {"python": platform.python_version(), **packages, "vidjax": __version__}
    yield "commit", ask("git", "rev-parse", "HEAD")
    yield "changed_files", (ask("git", "status", "--short", "--untracked-files=no") or "").splitlines()
    driver = ask("nvidia-smi", "--query-gpu=name,driver_version,power.limit,clocks.max.sm", "--format=csv,noheader")
    yield "driver", driver
    told = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    yield "environment", {name: os.environ[name] for name in told if name in os.environ}


def ask(*command: str) -> str | None:
    """What a program prints; None where it is not installed or fails."""
    if not shutil.which(command[0]):
        return None
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
