"""What a training step takes on a pod, from a program for as many simulated CPU devices.

Bytes and collectives are read off that program. Times are an estimate: matrix products at `EFFICIENCY` of the chip's
peak, then all that travels at the speed of its links, nothing overlapped. A CPU program keeps some bf16 arrays in fp32
and fuses less, so activations are rather over than under what a TPU or GPU needs.
"""

import math
from typing import Any

import jax

from vidjax import sharding
from vidjax.chips import GIB, Chip
from vidjax.program import collectives
from vidjax.stage import step_flops
from vidjax.train import abstract_state, step_of

EFFICIENCY = 0.5


def planned(stage: Any, batch: Any, chip: Chip, count: int) -> dict[str, Any]:
    """Figures of one stage, bytes a device in GiB, and what to do if it does not fit. Raises InputError for a mesh or a
    batch that do not fit the number of devices."""
    mesh = sharding.make_mesh(**stage.mesh)
    sharding.check_batch(mesh, stage.train.batch_size, stage.train.accumulate)
    flops = step_flops(stage, batch)
    with jax.set_mesh(mesh):
        lowered, state = lower_step(stage, mesh, batch)
        compiled = lowered.compile()
    memory, sent = compiled.memory_analysis(), list(collectives(compiled.as_text()))
    parts = {"parameters": state.params, "frozen": state.frozen, "average": state.ema, "optimizer": state.opt_state}
    sizes = {name: sum(map(own_bytes, jax.tree.leaves(tree))) / GIB for name, tree in parts.items()}
    activations, kept = memory.temp_size_in_bytes / GIB, sum(sizes.values())
    outside = chip.node and count > chip.node
    compute = flops / count / chip.flops / EFFICIENCY
    travel = sum(bytes_ for _, bytes_ in sent) / (chip.network if outside else chip.link)
    found: dict[str, Any] = {f"{name}_gib": size for name, size in sizes.items()}
    found |= {"activations_gib": activations, "total_gib": kept + activations, "memory_gib": chip.memory / GIB}
    for kind in sorted({kind for kind, _ in sent}):
        own = [bytes_ for other, bytes_ in sent if other == kind]
        found |= {f"{kind}_count": len(own), f"{kind}_gib": sum(own) / GIB}
    found |= {"tflop_per_step": flops / 1e12, "compute_seconds": compute, "travel_seconds": travel}
    found |= {"step_seconds": compute + travel, "mfu": flops / count / chip.flops / (compute + travel)}
    return found | {"verdict": verdict(kept, activations, chip.memory / GIB, stage, mesh)}


def lower_step(stage: Any, mesh: Any, batch: Any) -> tuple[Any, Any]:
    """The training step, to be compiled, and the shapes of the state with where they lie; no weights are read."""
    shapes = abstract_state(stage)
    at = lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)
    state = jax.tree.map(at, shapes, sharding.tree_sharding(mesh, shapes))
    batch = jax.tree.map(lambda shape: at(shape, sharding.batch_sharding(mesh)), batch)
    return step_of(stage, mesh, state).lower(state, batch), state


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
