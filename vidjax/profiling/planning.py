"""What a training step takes on a pod, from the program that a compiler makes of it: no chip is needed.

Where XLA's compiler for the accelerator is installed (`vidjax.profiling.chips`), the program is the one that would run
there, and its bytes are the compiler's own account. Elsewhere it is one for as many simulated CPU devices, which keeps
some bf16 arrays in fp32 and fuses less, so that activations are rather over than under what a TPU or GPU needs.

Times are estimates. For TPUs they are the compiler's cycles, with what `program.cycles` adds; for others matrix
products at `EFFICIENCY` of the peak and, for GPUs, all other operations as long as their bytes take to and from memory.
To that comes what travels, at the speed of the links, nothing overlapped. MFU counts the model's FLOPs as in the
textbook, not those that rematerialisation repeats.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from vidjax.profiling import chips
from vidjax.profiling import layers as profiling
from vidjax.profiling.chips import GIB, Chip
from vidjax.profiling.program import Instruction, bytes_moved, collectives, cycles, is_product
from vidjax.runtime import sharding
from vidjax.training.loop import abstract_state, step_of
from vidjax.training.stage import Stage, step_flops

EFFICIENCY = 0.5
LISTED = 10  # operations that a plan names
DEPTH = 4  # parts of a layer's path that it names


def planned(
    stage: Stage,
    batch: Any,
    chip: Chip,
    count: int,
    devices: Sequence[Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Plans one stage: figures per device, bytes in GiB, and what to do if it does not fit.

    `devices` are those of the topology, to compile for; without them JAX's own, as many, are taken. `say` is told how
    far it is. Raises InputError for a mesh or a batch that do not fit the number of devices.
    """
    mesh = sharding.make_mesh(**stage.mesh, devices=devices)
    sharding.check_batch(mesh, stage.train.batch_size, stage.train.accumulate)
    flops = step_flops(stage, batch)
    say(f"{flops / 1e12:,.4g} TFLOP per step; tracing")
    with chips.lowering_for(chip):
        lowered, state = lower_step(stage, mesh, batch)
    say(f"compiling for {count} x {chip.kind}, which takes minutes for large models")
    compiled = lowered.compile(compiler_options=chips.COMPILER_OPTIONS[chip.platform] if devices else None)
    memory, text = compiled.memory_analysis(), compiled.as_text()
    sent = list(collectives(text))
    parts = {"parameters": state.params, "frozen": state.frozen, "average": state.ema, "optimizer": state.opt_state}
    sizes = {name: sum(map(own_bytes, jax.tree.leaves(tree))) / GIB for name, tree in parts.items()}
    kept = sum(sizes.values())
    total = memory.peak_memory_in_bytes / GIB if devices else kept + memory.temp_size_in_bytes / GIB
    travel = sum(bytes_ for _, bytes_ in sent) / (chip.network if chip.node and count > chip.node else chip.link)
    seconds, dear = durations(text, chip, flops / count, devices is not None)
    found: dict[str, Any] = {"compiler": compiler_of(chip, devices)}
    found |= {f"{name}_gib": size for name, size in sizes.items()}
    found |= {"activations_gib": total - kept, "total_gib": total, "memory_gib": chip.memory / GIB}
    for kind in sorted({kind for kind, _ in sent}):
        own = [bytes_ for other, bytes_ in sent if other == kind]
        found |= {f"{kind}_count": len(own), f"{kind}_gib": sum(own) / GIB}
    found |= {"tflop_per_step": flops / 1e12, "compute_seconds": seconds, "travel_seconds": travel}
    found |= {"step_seconds": seconds + travel, "mfu": flops / count / chip.flops / (seconds + travel)}
    paths = {path for path, _ in profiling.layers(stage.abstract())}
    found |= {"most_expensive": most_expensive(dear, paths)}
    return found | {"verdict": verdict(kept, total - kept, chip.memory / GIB, stage, mesh)}


def compiler_of(chip: Chip, devices: Sequence[Any] | None) -> str:
    """Whose compiler a plan is by: "tpu", "cuda" or "cpu"."""
    return {"tpu": "tpu", "gpu": "cuda"}[chip.platform] if devices else "cpu"


def lower_step(stage: Stage, mesh: Any, batch: Any) -> tuple[Any, Any]:
    """The training step, to be compiled, and the shapes of the state with where they lie; no weights are read."""
    shapes = abstract_state(stage)
    at = lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)
    state = jax.tree.map(at, shapes, sharding.tree_sharding(mesh, shapes))
    batch = jax.tree.map(lambda shape: at(shape, sharding.batch_sharding(mesh)), batch)
    stage = dataclasses.replace(stage, objective=profiling.named(stage.objective))
    with jax.set_mesh(mesh):  # not before: nothing can run on devices that are there to compile for
        return step_of(stage, mesh, state).lower(state, batch), state


def durations(text: str, chip: Chip, flops: float, real: bool) -> tuple[float, list[tuple[Instruction, dict]]]:
    """Seconds of a program's step on one device that has `flops` to do, what travels left out; and its operations,
    the dearest first, with what was counted of each: cycles or, but on TPUs, GiB to and from memory."""
    if real and chip.platform == "tpu":
        spent = cycles(text, chip.cells)
        whole = sum(count for _, count in spent)
        return whole / chip.clock, [(each, {"share": n / whole, "cycles": n}) for each, n in spent]
    moved = bytes_moved(text)
    whole = sum(size for _, size in moved)
    dear = [(each, {"share": size / whole, "gib": size / GIB}) for each, size in moved]
    beside = sum(size for each, size in moved if not is_product(each)) / chip.bandwidth if real else 0.0
    return flops / chip.flops / EFFICIENCY + beside, dear


def most_expensive(dear: Sequence[tuple[Instruction, Mapping[str, float]]], paths: set[str]) -> list[dict[str, Any]]:
    """The first operations of `durations`, added up over those of the same name in the same layer."""
    total: dict[tuple[str, str], Counter[str]] = {}
    for each, figures in dear:
        total.setdefault((operation(each), profiling.layer_of(each.scope, paths, DEPTH)), Counter()).update(figures)
    rows = sorted(total.items(), key=lambda row: -row[1]["share"])[:LISTED]
    return [{"operation": name, "layer": layer, **figures} for (name, layer), figures in rows]


def operation(each: Instruction) -> str:
    """What an instruction was in the traced function, forward or backward, and what the compiler made of it."""
    backward = "backward " if "transpose(" in each.scope else ""
    traced = each.scope.rpartition("/")[2]
    kind = each.kernel or each.kind
    return f"{backward}{traced} ({kind})" if traced and traced != kind else f"{backward}{kind}"


def own_bytes(leaf: Any) -> int:
    """Of one device."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def verdict(kept: float, activations: float, memory: float, stage: Any, mesh: Any) -> str:
    """One line: whether it fits, and which axis to raise if not."""
    if kept + activations <= 0.9 * memory:
        return "fits"
    own = stage.train.batch_size // stage.train.accumulate // mesh.shape["data"] // mesh.shape["fsdp"]
    state, live = (
        f"parameters and optimizer are {kept:.3g} GiB a device",
        f"activations are {activations:.3g} GiB a device",
    )
    if kept > 0.45 * memory:
        return f"does not fit: {state}, raise mesh.fsdp ({mesh.shape['fsdp']})"
    if stage.train.remat != "full":
        return f"does not fit: {live}, set train.remat=full ({stage.train.remat})"
    if own > 1:
        return f"does not fit: {live} of {own} clips, raise train.accumulate or lower train.batch_size"
    return f"does not fit: {live} of one clip, raise mesh.context ({mesh.shape['context']})"
