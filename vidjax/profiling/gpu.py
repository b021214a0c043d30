"""How long a compiled program takes on a GPU: an estimate from its text.

An instruction takes as long as its products at a part of the chip's peak, or as its bytes at a part of its bandwidth,
whichever is more, and what every kernel takes beside. The parts are those that two training steps reached on an H200
(tests/benchmarks/results/h200-gpu.json); all chips are taken to reach the same.
"""

import math
import re
from collections.abc import Iterator

from vidjax.profiling.chips import Chip
from vidjax.profiling.program import Instruction, bytes_moved, instructions, shapes_of, times_run

# Of the peak, by who multiplies. Products that XLA's own kernels do count as a library's.
RATES = {"convolution": 0.72, "product": 0.66, "flash": 0.48, "flash backward": 0.33}
SLOW = 0.5  # times that, where the factors are fp32: they are rounded to TF32
BANDWIDTH = 0.8
KERNEL = 4e-6  # seconds, the pause before it included
HEAD = 64  # numbers of a head that cuDNN multiplies at a time


def spent(program: str, chip: Chip) -> list[tuple[Instruction, float, float]]:
    """(instruction, seconds, bytes of operands and results) in all its runs, the slowest first."""
    runs, found = times_run(program), []
    multiplied = {(each.computation, each.name): (kind, count) for each, kind, count in multiplications(program)}
    for each, handled in bytes_moved(program):
        times = runs[each.computation]
        kind, count = multiplied.get((each.computation, each.name), ("product", 0.0))
        least = max(times * count / RATES[kind] / chip.flops, handled / BANDWIDTH / chip.bandwidth)
        found.append((each, least + times * KERNEL, handled))
    return sorted(found, key=lambda row: -row[1])


def multiplications(program: str) -> Iterator[tuple[Instruction, str, float]]:
    """(instruction, its kind in `RATES`, FLOPs of one run as the peak counts them: heads padded to `HEAD`, of fp32
    factors more) of all that multiply, of fusions those inside added up."""
    shapes: dict[tuple[str, str], str] = {}
    inside: dict[str, float] = {}
    for each in instructions(program):
        shapes[each.computation, each.name] = each.shape
        given = [shapes.get((each.computation, name), "") for name in each.operands]
        kind, count = _own(each, given)
        if each.kind == "fusion" and (called := re.search(r"calls=%([\w.-]+)", each.rest)):
            kind, count = "product", inside.get(called[1], 0.0)
        elif count and shapes_of(given[0])[0][0] == "f32":
            count /= SLOW
        if count:
            inside[each.computation] = inside.get(each.computation, 0.0) + count
            yield each, kind, count


def _own(each: Instruction, given: list[str]) -> tuple[str, float]:
    """Kind and FLOPs of an instruction by itself, whose operands have the shapes `given`."""
    kernel = each.kernel or ""
    if "fmhaSoftmax" in kernel:
        (b, n, heads, d), m = shapes_of(given[0])[0][1], shapes_of(given[1])[0][1][1]
        kind, times = ("flash backward", 10.0) if "Backward" in kernel else ("flash", 4.0)
        return kind, times * b * n * m * heads * -(-d // HEAD) * HEAD
    if each.kind == "convolution" or kernel.startswith("__cudnn$conv"):
        # Of y = x * k, in whichever order: two for each entry of y and of k that meet.
        y, k = each.shape, given[1]
        if "BackwardInput" in kernel:
            y = given[0]
        if "BackwardFilter" in kernel:
            y, k = given[1], each.shape
        labels, sizes = re.search(r"dim_labels=\w+_(\w+)->", each.rest), shapes_of(k)[0][1]
        return "convolution", 2.0 * _entries(y) * math.prod(sizes) / sizes[labels[1].index("o")] if labels else 0.0
    if each.kind == "dot" or kernel.startswith("__cublas$"):
        summed = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([^\]}]*)', each.rest)
        axes = map(int, re.findall(r"\d+", summed[1])) if summed else ()
        sizes = shapes_of(given[0])[0][1]
        return "product", 2.0 * _entries(each.shape) * math.prod(sizes[axis] for axis in axes)
    return "product", 0.0


def _entries(shape: str) -> int:
    """Of the first array of a shape."""
    return math.prod(shapes_of(shape)[0][1])
