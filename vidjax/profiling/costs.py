"""What a compiled program costs on a chip: seconds, bytes, and which operations are the most expensive.

Times are estimates. For TPUs they are the compiler's cycles, with what `program.cycles` adds; for GPUs those of `gpu`;
where no compiler for the chip is installed matrix products at `EFFICIENCY` of the peak, and nothing else.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vidjax.profiling import gpu
from vidjax.profiling import layers as profiling
from vidjax.profiling.chips import GIB, Chip
from vidjax.profiling.program import Instruction, bytes_moved, cycles

EFFICIENCY = 0.5
OPERATIONS_LISTED = 10
PARTS_NAMED = 4  # of a layer's path


def durations(text: str, chip: Chip, flops: float, real: bool) -> tuple[float, list[tuple[Instruction, dict]]]:
    """Estimates the seconds of a program on one device that has `flops` to do, what travels left out; and lists its
    operations, the most expensive first, with what was counted of each: cycles, or elsewhere than on TPUs GiB to and
    from memory, on GPUs also milliseconds."""
    if real and chip.platform == "tpu":
        spent = cycles(text, chip.cells)
        whole = sum(count for _, count in spent)
        return whole / chip.clock, [(each, {"share": n / whole, "cycles": n}) for each, n in spent]
    if real:
        rows = gpu.spent(text, chip)
        whole = sum(seconds for _, seconds, _ in rows)
        return whole, [(each, {"share": own / whole, "ms": 1e3 * own, "gib": n / GIB}) for each, own, n in rows]
    moved = bytes_moved(text)
    whole = sum(size for _, size in moved)
    return flops / chip.flops / EFFICIENCY, [(each, {"share": n / whole, "gib": n / GIB}) for each, n in moved]


def most_expensive(dear: Sequence[tuple[Instruction, Mapping[str, float]]], paths: set[str]) -> list[dict[str, Any]]:
    """Adds up the operations of `durations` of the same name in the same layer, and returns the first rows."""
    total: dict[tuple[str, str], Counter[str]] = {}
    for each, figures in dear:
        total.setdefault((operation(each), profiling.layer_of(each.scope, paths, PARTS_NAMED)), Counter()).update(
            figures
        )
    rows = sorted(total.items(), key=lambda row: -row[1]["share"])[:OPERATIONS_LISTED]
    return [{"operation": name, "layer": layer, **figures} for (name, layer), figures in rows]


def operation(each: Instruction) -> str:
    """Says what an instruction was in the traced function, forward or backward, and what the compiler made of it."""
    backward = "backward " if "transpose(" in each.scope else ""
    traced = each.scope.rpartition("/")[2]
    kind = each.kernel or each.kind
    return f"{backward}{traced} ({kind})" if traced and traced != kind else f"{backward}{kind}"


def own_bytes(leaf: Any) -> int:
    """Counts the bytes that one device holds of an array."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
