"""Two sides that do the same work take turns in one process; figures are their medians and the ratio of these."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import torch


@dataclass(frozen=True)
class Options:
    """`device`, `compile`: torch's (JAX has its own default); `dtype`: what both compute in, parameters being fp32;
    `paper`: sizes of the papers in place of those for two cores."""

    repeats: int
    device: str
    dtype: str
    compile: bool
    paper: bool

    def theirs(self, model: torch.nn.Module) -> torch.nn.Module:
        model = model.to(self.device)
        return torch.compile(model) if self.compile else model

    def autocast(self) -> Any:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16")


def in_turns(repeats: int, **sides: Callable[[], Any]) -> dict[str, Any]:
    """Wall and CPU seconds of each side, the first run of each, which compiles, apart. A side returns what is on the
    host, or JAX's arrays."""
    first = {name: stopwatch(run)[0] for name, run in sides.items()}
    taken = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            taken[name].append(stopwatch(run))
    found: dict[str, Any] = {}
    for name, pairs in taken.items():
        wall, cpu = zip(*pairs)
        found[name] = {
            "median": statistics.median(wall),
            "min": min(wall),
            "max": max(wall),
            "cpu_median": statistics.median(cpu),
            "first": first[name],
        }
    return found


def stopwatch(run: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return time.perf_counter() - wall, time.process_time() - cpu


def against(repeats: int, **sides: Callable[[], Any]) -> dict[str, Any]:
    found = in_turns(repeats, **sides)
    ratios = {
        kind: found["ours"][of] / found["torch"][of]
        for kind, of in (("ratio", "median"), ("ratio_min", "min"), ("ratio_cpu", "cpu_median"))
    }
    return {**ratios, "repeats": repeats, "load": os.getloadavg()[0], **found}
