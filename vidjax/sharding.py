"""Where arrays live: a mesh of `data, fsdp, tensor, context`, and rules from parameter path and size to its axes."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vidjax.errors import InputError

AXES = ("data", "fsdp", "tensor", "context")
BATCH = ("data", "fsdp")  # the axes that split a batch


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, context: int = 1) -> Mesh:
    """A mesh over all devices; -1, at most once, takes what the other axes leave.

    Raises: InputError if the sizes do not fit the number of devices.
    """
    count = jax.device_count()
    sizes: dict[str, int] = dict(zip(AXES, (data, fsdp, tensor, context)))
    asked = ", ".join(f"{k}={v}" for k, v in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise InputError(f"mesh {asked}: sizes are positive, and one at most is -1 (what is left)")
    if count % fixed or (not free and fixed != count):
        raise InputError(
            f"mesh {asked} asks for {'a multiple of ' if free else ''}{fixed} devices, there are {count}: "
            f"change config.mesh so that its product is {count}"
        )
    if free:
        sizes[free[0]] = count // fixed
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raises InputError if the mesh, times the micro-batches, does not divide the batch."""
    ways = math.prod(mesh.shape[axis] for axis in BATCH)
    if batch_size % (ways * accumulate):
        raise InputError(
            f"batch size {batch_size} is not divisible by {ways} (mesh data x fsdp) x {accumulate} (accumulated micro-"
            f"batches): set config.train.batch_size to a multiple of {ways * accumulate}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 over the data and fsdp axes, the rest whole."""
    return NamedSharding(mesh, P(BATCH))


def parameter_sharding(mesh: Mesh, shape: tuple[int, ...], min_size: int = 2**16) -> NamedSharding:
    """The fsdp axis splits the largest dimension that it divides, of arrays with at least `min_size` elements."""
    ways = mesh.shape["fsdp"]
    if ways == 1 or math.prod(shape) < min_size:
        return replicated(mesh)
    for axis in sorted(range(len(shape)), key=lambda i: shape[i], reverse=True):
        if shape[axis] % ways == 0:
            return NamedSharding(mesh, P(*(None,) * axis, "fsdp"))
    return replicated(mesh)


def tree_sharding(mesh: Mesh, tree: Any) -> Any:
    """A sharding for each leaf: parameters, moments and averages of one shape lie alike."""
    return jax.tree.map(lambda leaf: parameter_sharding(mesh, leaf.shape), tree)


def put_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, Any]:
    """This process's share of the global batch, onto its devices."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda value: jax.make_array_from_process_local_data(sharding, value), dict(batch))
