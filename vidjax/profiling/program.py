"""What the text of a compiled program says: its instructions, what they cost, and what travels between devices."""

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

# Instructions that only hold others, or data.
HOLLOW = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}
WIDTH = 128  # of a TPU's matrix units, to which kernels pad a head
# Matrix products of a flash attention kernel, (queries x keys x features of a head) each. Backward computes the weights
# again: one kernel for all (5), or one for keys and values (4) and one for queries (3).
FLASH = {"fwd": 2, "forward": 2, "dkv": 5, "dq": 3, "backward": 5}
LIBRARY = re.compile(r"__cu(blas|dnn)\$(lt\$matmul|gemm|conv)")  # products by a library on GPUs
LINE = re.compile(r"^ *(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")


@dataclass(frozen=True)
class Instruction:
    """A line of a program: the computation that it stands in, its name, the shape that it makes, its kind, the rest."""

    computation: str
    name: str
    shape: str
    kind: str
    rest: str

    @property
    def scope(self) -> str:
        """The names and transformations under which it was traced, such as `jit(step)/jvp(unet.mid.0)/dot_general`."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def operands(self) -> list[str]:
        """Names of the instructions that this one reads."""
        return re.findall(r"%([\w.-]+)", self.rest.split("),")[0])

    @property
    def cycles(self) -> int | None:
        """What the TPU compiler estimates for one run of it."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else None

    @property
    def kernel(self) -> str | None:
        """The name of a kernel that is not the compiler's own: of Pallas's the traced function, of libraries their
        target, such as `splash_mha_fwd_residuals` and `__cudnn$fmhaSoftmax`."""
        found = re.search(r'custom_call_target="([^"]*)"', self.rest)
        return found and (self.name.rstrip("0123456789").rstrip(".") if found[1] == "tpu_custom_call" else found[1])


def instructions(program: str) -> Iterator[Instruction]:
    """All, in the order of the text: a computation stands before what calls it."""
    computation = ""
    for line in re.sub(
        r"\{\n([^\n]*)\n\}\}", r"{\1}}", program
    ).splitlines():  # a Pallas kernel's metadata: three lines
        if found := re.match(r"(?:ENTRY )?%([\w.-]+) \(.*\{$", line):
            computation = found[1]
        elif computation and (found := LINE.match(line)):
            yield Instruction(computation, *found.groups())


def read_program(text: str) -> dict[str, tuple[str, int]]:
    """{instruction: (scope, bytes of operands and results)} of a compiled program's text."""
    sizes, found = {}, {}
    for each in instructions(text):
        sizes[each.name] = bytes_of(each.shape)
        if each.kind not in HOLLOW:
            handled = sum(sizes.get(other, 0) for other in each.operands)
            found[each.name] = (each.scope, sizes[each.name] + handled)
    return found


def shapes_of(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """[(dtype, sizes)] of the arrays in `f32[2,3]{1,0}`, or in a tuple of such."""
    arrays = re.findall(r"([a-z]+\d*\w*)\[([\d,]*)\]", text)
    return [(dtype, tuple(map(int, filter(None, sizes.split(","))))) for dtype, sizes in arrays]


def bytes_of(text: str) -> int:
    """Adds up the bytes of all shapes in a text of XLA."""
    bits = lambda dtype: int((re.search(r"\d+", dtype) or "8")[0])
    return sum(math.prod(sizes) * max(bits(dtype) // 8, 1) for dtype, sizes in shapes_of(text))


def collectives(program: str) -> Iterator[tuple[str, float]]:
    """(kind, bytes that a device sends) of each collective that a compiled program runs.

    What a TPU sends beside other work stands in each of the instructions that it accompanies, as one chain: it counts
    once. Where one starts, what it reads stands beside what it makes. A TPU's reduce-scatter is written as an
    all-reduce in a computation of that name, of which a device takes its part.
    """
    chains: set[str] = set()
    kinds = re.compile(r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?")
    sending = [(each, found[1]) for each in instructions(program) if (found := kinds.fullmatch(each.kind))]
    runs = times_run(program) if sending else {}
    for each, kind in sending:
        if chain := re.search(r'chain_id="(\d+)"', each.rest):
            if chain[1] in chains:
                continue
            chains.add(chain[1])
        share = 1 - 1 / (n := group_size(each.rest))
        if kind == "all-reduce" and each.computation.startswith("all-reduce-scatter"):
            yield from itertools.repeat(("reduce-scatter", bytes_of(each.shape) * share), runs[each.computation])
            continue
        times = {"all-reduce": 2 * share, "reduce-scatter": n - 1, "collective-permute": 1.0}.get(kind, share)
        times *= {"collective-permute-start": 1 / 2, "all-gather-start": n / (n + 1)}.get(each.kind, 1.0)
        yield from itertools.repeat((kind, bytes_of(each.shape) * times), runs[each.computation])


def cycles(program: str, cells: int) -> list[tuple[Instruction, float]]:
    """(instruction, cycles in all its runs) of a program for a TPU, by the compiler's own estimate, the most first.

    Pallas kernels carry none: flash attention counts as long as its products take at the peak of a chip with so many
    `cells` in its matrix units, heads padded to `WIDTH`, which is the least that it can take; other kernels count as
    nothing. What is copied between HBM and VMEM beside the
    work, and collectives, have none either.
    """
    runs, fused, found = times_run(program), fusions(program), []
    for each in instructions(program):
        own = each.cycles if each.kernel is None else (each.cycles or flash_products(each) / cells)
        if own and each.computation not in fused:
            found.append((each, float(own * runs[each.computation])))
    return sorted(found, key=lambda pair: -pair[1])


def bytes_moved(program: str) -> list[tuple[Instruction, float]]:
    """(instruction, bytes of operands and results in all its runs), the most first: an upper bound, with caches."""
    runs, fused, sizes, found = times_run(program), fusions(program), {}, []
    for each in instructions(program):
        sizes[each.computation, each.name] = bytes_of(each.shape)
        if each.kind not in HOLLOW and each.computation not in fused:
            own = bytes_of(each.shape) + sum(sizes.get((each.computation, name), 0) for name in each.operands)
            found.append((each, float(own * runs[each.computation])))
    return sorted(found, key=lambda pair: -pair[1])


def flash_products(kernel: Instruction) -> float:
    """Multiplications of a flash attention kernel, from the shapes of its queries and keys; 0 of other kernels."""
    given = re.search(r"operand_layout_constraints=\{(.*?\})\}", kernel.rest)
    count = next((count for name, count in FLASH.items() if name in (kernel.kernel or "")), 0)
    if given and (own := re.search(r"short_attention_(\d+)", kernel.kernel or "")):
        _, (b, n, features) = shapes_of(given[1])[0]
        return float(count * b * n * n * features / int(own[1]) * -(-int(own[1]) // WIDTH) * WIDTH)
    large = [sizes for dtype, sizes in shapes_of(given[1]) if len(sizes) == 4 and dtype[0] != "s"] if given else []
    if not count or len(large) < 2:
        return 0.0
    (b, heads, *query), (*_, i, j) = large[:2]
    last = query[0] % WIDTH != 0  # tokens come in whole rows, and are the last axis where heads do not
    n, m, width = (query[1], j, query[0]) if last else (query[0], i, query[1])
    return float(count * b * heads * n * m * -(-width // WIDTH) * WIDTH)


def kernels(program: str) -> Counter[str]:
    """{kernel that is not the compiler's own: how often it stands in the program}."""
    return Counter(name for each in instructions(program) if (name := each.kernel))


def products(program: str) -> Iterator[tuple[Instruction, list[str]]]:
    """(instruction, dtypes of what it multiplies) of all matrix products and convolutions, also those in fusions and,
    on GPUs, those that a library does; flash attention is none."""
    shapes: dict[tuple[str, str], str] = {}
    for each in instructions(program):
        shapes[each.computation, each.name] = each.shape
        if each.kind in ("dot", "convolution") or LIBRARY.match(each.kernel or ""):
            factors = [shapes_of(shapes.get((each.computation, name), "")) for name in each.operands[:2]]
            yield each, [arrays[0][0] for arrays in factors if arrays]


def aliased(program: str) -> set[int]:
    """Which arguments of a program lend their memory to a result: those that it is given to keep."""
    header = program[: program.find("\n")]
    return {int(number) for number in re.findall(r"\((\d+), \{[\d, ]*\}, (?:may|must)-alias\)", header)}


def fusions(program: str) -> set[str]:
    """Computations that stand for one instruction: fusions, and what a sum or a sort does with two numbers."""
    fused = re.findall(r" fusion\([^\n]*?calls=%([\w.-]+)", program)
    applied = (re.search(r"to_apply=%([\w.-]+)", each.rest) for each in instructions(program) if each.kind != "call")
    return {*fused, *(found[1] for found in applied if found)}


def times_run(program: str) -> Counter[str]:
    """{computation: how often it runs}: what a loop holds as often as it turns, if that can be read off, else once;
    each branch of a condition."""
    calls = re.compile(r"(?:body|condition|calls|to_apply|\w+_computations?)=\{?((?:%[\w.-]+(?:, )?)+)")
    called, last, lines = defaultdict(list), "", {}
    for each in instructions(program):
        last = each.computation
        lines[last, each.name] = each
        turns = loop_turns(each, lines) if each.kind == "while" else 1
        for names in calls.findall(each.rest):
            called[last] += [(name, turns) for name in re.findall(r"[\w.-]+", names)]
    runs = Counter({last: 1})  # the program itself, after all that it calls
    for name in reversed(called):
        for other, times in called[name]:
            runs[other] += runs[name] * times
    return runs


def loop_turns(loop: Instruction, lines: dict[tuple[str, str], Instruction]) -> int:
    """How often a loop turns: as the compiler notes it (CPUs, GPUs), else by its condition `counter < limit`, as
    `jax.lax.scan` and `fori_loop` have it; 1 if that is something else."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(noted[1])
    found = re.search(r"condition=%([\w.-]+)", loop.rest)
    inside = found[1] if found else ""
    ends = [each for (place, _), each in lines.items() if place == inside and each.kind == "compare"]
    if len(ends) != 1 or "direction=LT" not in ends[0].rest:
        return 1
    start, limit = (_number(inside, name, loop, lines) for name in ends[0].operands)
    return 1 if start is None or limit is None else max(limit - start, 0)


def _number(place: str, name: str, loop: Instruction, lines: dict[tuple[str, str], Instruction]) -> int | None:
    """The integer that an instruction in a loop's condition stands for at the loop's start, if it is a constant."""
    each = lines.get((place, name))
    if each is None:
        return None
    if each.kind == "constant":
        found = re.match(r"(-?\d+)\)", each.rest)
        return int(found[1]) if found else None
    if each.kind in ("copy", "convert", "bitcast"):
        return _number(place, each.operands[0], loop, lines)
    if each.kind == "get-tuple-element" and place != loop.computation:
        entry = lines.get((loop.computation, loop.operands[0]))
        index = re.search(r"index=(\d+)", each.rest)
        if entry and index and entry.kind == "tuple":
            return _number(loop.computation, entry.operands[int(index[1])], loop, lines)
    return None


def group_size(text: str) -> int:
    """Of how many devices a collective is: `{{0,1},{2,3}}`, `[2,2]<=[4]` or `mesh['a'=2,'b'=2] {'b'}`."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    return 2
