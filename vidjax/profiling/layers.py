"""Where a step's work and time go, layer by layer.

FLOPs come from the traced function, bytes from the compiled program, times from a trace of what ran.

A layer is called by the path of its parameters. What is done for no layer in particular (loss, optimizer, averages,
what the compiler adds) is in the row `REST`.
"""

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from vidjax.errors import InputError
from vidjax.models.kernels.attention import ATTENTION
from vidjax.profiling.program import read_program
from vidjax.runtime.platforms import platform

REST = "rest"
# Options of a program that is to be traced, by platform: what a GPU's graph runs bears the graph's name, not the
# instructions'.
TRACED: dict[str, jax.stages.CompilerOptions] = {"gpu": {"xla_gpu_enable_command_buffer": ""}}
Span = tuple[str, float, float]  # instruction, start, end


def named(objective: Callable[..., Any]) -> Callable[..., Any]:
    """An objective whose model's layers are traced under their paths as names."""

    def call(model: nnx.Module, *rest: Any) -> Any:
        with layer_names(model):
            return objective(model, *rest)

    return call


@contextlib.contextmanager
def layer_names(model: nnx.Module) -> Iterator[None]:
    """Inside, each layer of `model` that is called is a `jax.named_scope` of its path."""
    paths = {id(layer): path for path, layer in layers(model)}
    kinds = {kind for _, layer in layers(model) for kind in type(layer).__mro__ if "__call__" in vars(kind)}
    before = {kind: kind.__call__ for kind in kinds}

    def scoped(call: Callable[..., Any]) -> Callable[..., Any]:
        def within(layer: nnx.Module, *args: Any, **more: Any) -> Any:
            if (path := paths.get(id(layer))) is None:
                return call(layer, *args, **more)
            with jax.named_scope(path):
                return call(layer, *args, **more)

        return within

    for kind, call in before.items():
        kind.__call__ = scoped(call)
    try:
        yield
    finally:
        for kind, call in before.items():
            kind.__call__ = call


def layers(model: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    """Yields the modules inside a model with their paths."""
    for path, node in nnx.iter_graph(model):
        if path and isinstance(node, nnx.Module):
            yield ".".join(map(str, path)), node


def layer_of(scope: str, paths: Collection[str], depth: int) -> str:
    """The first `depth` parts of the innermost layer's path in a scope such as `jvp(unet.mid.0)/transpose(...)`."""
    inside = [part for part in re.split(r"[/()]", scope) if part in paths]
    return ".".join(inside[-1].split(".")[:depth]) if inside else REST


def table(
    flops: Mapping[str, float], program: str, spans: Iterable[Span], steps: int, paths: Collection[str], depth: int
) -> dict[str, dict[str, float]]:
    """A step's GFLOP, GB read and written, milliseconds and share of time a layer, the slowest first.

    `flops` are by scope, `spans` those of `steps` steps of the compiled `program`. Bytes are the operands and results
    of each instruction that ran, whole: an upper bound where caches help or only a part is read.
    """
    rows: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(("gflop", "gb", "ms"), 0.0))
    for scope, count in flops.items():
        rows[layer_of(scope, paths, depth)]["gflop"] += count / 1e9
    instructions = read_program(program)
    spans = [span for span in spans if span[0] in instructions]
    for name, times in Counter(name for name, *_ in spans).items():
        scope, size = instructions[name]
        rows[layer_of(scope, paths, depth)]["gb"] += times * size / steps / 1e9
    for name, seconds in shared_time(spans).items():
        rows[layer_of(instructions[name][0], paths, depth)]["ms"] += seconds / steps * 1e3
    whole = sum(row["ms"] for row in rows.values())
    for row in rows.values():
        row["share"] = row["ms"] / whole
    return dict(sorted(rows.items(), key=lambda row: -row[1]["ms"]))


def attention_of(program: str, paths: Collection[str], depth: int) -> dict[str, str]:
    """{layer: how the compiled `program` attends in it}: names in `kernels.attention.ATTENTION`."""
    scopes = {scope for scope, _ in read_program(program).values()}
    found = defaultdict(set)
    for scope in scopes:
        for name in re.findall(r"attention_(\w+)", scope):
            if name in ATTENTION:
                found[layer_of(scope, paths, depth)].add(name)
    return {layer: ", ".join(sorted(names)) for layer, names in found.items()}


def compile_to_trace(lowered: jax.stages.Lowered, compiled: jax.stages.Compiled) -> jax.stages.Compiled:
    """The program whose trace names each instruction: `compiled` where that one does, else `lowered` compiled anew,
    so that on GPUs kernels are started one by one."""
    options = TRACED.get(platform())
    return lowered.compile(options) if options else compiled


def read_trace(folder: Path) -> list[Span]:
    """What ran on the devices in the last trace that was written there, in seconds. Raises InputError if it holds
    nothing of the kind."""
    spans: list[Span] = []
    files = list(folder.rglob("*.xplane.pb"))
    last = max((file.parent for file in files), key=lambda path: path.stat().st_mtime_ns, default=None)
    for file in (file for file in files if file.parent == last):
        begun, ended = defaultdict(list), defaultdict(list)
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for event in (event for line in plane.lines for event in line.events):
                if event.name.startswith("end: "):  # of an instruction that a CPU works off on other threads
                    ended[event.name.removeprefix("end: ")].append(event.start_ns / 1e9)
                elif name := dict(event.stats).get("hlo_op"):
                    begun[name].append((event.start_ns / 1e9, event.end_ns / 1e9))
        for name, own in begun.items():
            later = sorted(ended[name])
            pairs = zip(sorted(own), later) if len(later) == len(own) else ((pair, pair[1]) for pair in own)
            spans += [(str(name), start, max(end, over)) for (start, end), over in pairs]
    if not spans:
        raise InputError(f"the trace in {folder} shows no operation of a device: this backend can't be profiled so")
    return spans


def shared_time(spans: Iterable[Span]) -> dict[str, float]:
    """Seconds an instruction; where several ran at once each has its part, so they add up to the time that any ran."""
    edges = sorted((time, change, name) for name, start, end in spans for time, change in ((start, 1), (end, -1)))
    running: Counter[str] = Counter()
    found: dict[str, float] = defaultdict(float)
    before = 0.0
    for time, change, name in edges:
        count = running.total()
        for other, times in running.items():
            found[other] += (time - before) * times / count
        running[name] += change
        if not running[name]:
            del running[name]
        before = time
    return dict(found)
