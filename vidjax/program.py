"""What the text of a compiled program says: its instructions, how large, and what travels between devices."""

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

# Instructions that only hold others, or data.
HOLLOW = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}


def read_program(text: str) -> dict[str, tuple[str, int]]:
    """{instruction: (scope, bytes of operands and results)} of a compiled program's text."""
    line = re.compile(r"^ *(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
    sizes, found = {}, {}
    for name, shape, kind, rest in (match.groups() for match in map(line.match, text.splitlines()) if match):
        sizes[name] = bytes_of(shape)
        operands = re.findall(r"%([\w.-]+)", rest.split("),")[0])
        scope = re.search(r'op_name="([^"]*)"', rest)
        if kind not in HOLLOW:
            found[name] = (scope[1] if scope else "", sizes[name] + sum(sizes.get(other, 0) for other in operands))
    return found


def bytes_of(shape: str) -> int:
    """Of `f32[2,3]{1,0}`, or of a tuple of such."""
    arrays = re.findall(r"([a-z]+(\d*)\w*)\[([\d,]*)\]", shape)
    return sum(
        math.prod(map(int, filter(None, dims.split(",")))) * max(int(bits or 8) // 8, 1) for _, bits, dims in arrays
    )


def collectives(program: str) -> Iterator[tuple[str, float]]:
    """(kind, bytes that a device sends) of each collective that a compiled program runs."""
    line = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
    runs = times_run(program)
    for name, text in instructions(program):
        if not (found := line.search(text)):
            continue
        kind, share = found[2], 1 - 1 / (n := group_size(text))
        times = {"all-reduce": 2 * share, "reduce-scatter": n - 1, "collective-permute": 1.0}.get(kind, share)
        yield from itertools.repeat((kind, bytes_of(found[1]) * times), runs[name])


def times_run(program: str) -> Counter[str]:
    """{computation: how often it runs}: what a loop holds as often as it turns, if the compiler knows, else once; each
    branch of a condition."""
    calls = re.compile(r"(?:body|condition|calls|to_apply|\w+_computations?)=\{?((?:%[\w.-]+(?:, )?)+)")
    called, last = defaultdict(list), ""
    for last, text in instructions(program):
        turns = re.search(r'"known_trip_count":\{"n":"(\d+)"', text) if " while(" in text else None
        for names in calls.findall(text):
            called[last] += [(name, int(turns[1]) if turns else 1) for name in re.findall(r"[\w.-]+", names)]
    runs = Counter({last: 1})  # the program itself, after all that it calls
    for name in reversed(called):
        for other, times in called[name]:
            runs[other] += runs[name] * times
    return runs


def instructions(program: str) -> Iterator[tuple[str, str]]:
    """(computation, line) of all, in the order of the text: a computation stands before what calls it."""
    name = ""
    for line in program.splitlines():
        if found := re.match(r"(?:ENTRY )?%([\w.-]+) \(.*\{$", line):
            name = found[1]
        elif name and " = " in line:
            yield name, line


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
