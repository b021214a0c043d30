"""The mesh of `data, fsdp, tensor, context`, and the rules that map parameter paths and sizes to its axes."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vidjax.errors import InputError

AXES = ("data", "fsdp", "tensor", "context")
BATCH_AXES = ("data", "fsdp")  # the axes that split a batch
# The tensor axis cuts pairs of layers so that what lies between them stays where it is (Shoeybi et al. 2019, section
# 3): the first one's output features, the second one's input features.
FIRST = re.compile(r"\.(to_q|to_k|to_v|ff(_in)?\.proj_in|linear_1|conv1|time_emb_proj)\.(kernel|bias)$")
SECOND = re.compile(r"\.(to_out|ff(_in)?\.proj_out|linear_2|conv2)\.kernel$")


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, context: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """Makes a mesh over all devices, or over `devices`, which may exist for the compiler alone (`profiling.chips`).

    One size may be -1: what the other axes leave. Between slices of TPUs, where the network is slow, lies the data
    axis, and the fsdp axis where data is too short.

    Raises: InputError if the sizes do not fit the number of devices or of slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
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
    types = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    split = dict(allow_split_physical_axes=True)  # an axis of the torus may serve several of ours: 2x2x2x2 on 4x4 chips
    if slices == 1:
        grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, **split)
    else:
        grid = mesh_utils.create_hybrid_device_mesh(*split_over_slices(sizes, slices), devices, **split)
    return Mesh(grid, AXES, axis_types=types)


def fitting_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, context: int = 1) -> Mesh:
    """Makes the mesh that a run was trained on, or the one nearest to it where the devices are others: tensor, context
    and fsdp as far as they divide the number of devices, data the rest. So a trained model samples on any machine."""
    count = left = jax.device_count()
    asked = {"tensor": tensor, "context": context, "fsdp": fsdp}
    fixed = math.prod(size for size in (*asked.values(), data) if size > 0)
    sizes = {}
    for axis, size in asked.items():
        size = count // fixed if size == -1 and count % fixed == 0 else abs(size)
        sizes[axis] = math.gcd(size, left)
        left //= sizes[axis]
    return make_mesh(left, **sizes)


def without_context(mesh: Mesh) -> Mesh:
    """Returns a mesh of the same devices whose data axis has taken in the context axis, for clips that context does not
    divide. Parameters are sharded alike on both, see `move_to_mesh`."""
    devices = np.moveaxis(mesh.devices, -1, 1)
    return Mesh(devices.reshape(-1, *devices.shape[2:], 1), AXES, axis_types=mesh.axis_types)


def move_to_mesh(tree: Any, mesh: Mesh) -> Any:
    """Returns arrays as arrays on another mesh of the same devices, each of which holds what it held: nothing is
    copied."""

    def same(x: jax.Array) -> jax.Array:
        assert isinstance(x.sharding, NamedSharding)
        sharding = NamedSharding(mesh, x.sharding.spec)
        return jax.make_array_from_single_device_arrays(x.shape, sharding, [s.data for s in x.addressable_shards])

    return jax.tree.map(same, tree)


def split_over_slices(sizes: Mapping[str, int], slices: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns (mesh within a slice, mesh of slices), whose product is the mesh. Raises InputError if the number of
    slices does not divide data x fsdp."""
    between = dict.fromkeys(AXES, 1)
    left = slices
    for axis in BATCH_AXES:
        between[axis] = math.gcd(sizes[axis], left)
        left //= between[axis]
    if left > 1:
        raise InputError(
            f"{slices} slices want a mesh whose data x fsdp they divide, it is {sizes['data']} x {sizes['fsdp']}: "
            f"set config.mesh.data to a multiple of {slices}"
        )
    return tuple(sizes[axis] // between[axis] for axis in AXES), tuple(between.values())


def batch_ways(mesh: Mesh) -> int:
    """Returns into how many parts the mesh divides a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raises InputError if the mesh, times the micro-batches, does not divide the batch size."""
    ways = batch_ways(mesh)
    if batch_size % (ways * accumulate):
        raise InputError(
            f"batch size {batch_size} is not divisible by {ways} (mesh data x fsdp) x {accumulate} (accumulated micro-"
            f"batches): set config.train.batch_size to a multiple of {ways * accumulate}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that is whole on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: axis 0 over the data and fsdp axes."""
    return NamedSharding(mesh, P(BATCH_AXES))


def parameter_sharding(mesh: Mesh, path: str, shape: tuple[int, ...], min_size: int = 2**16) -> NamedSharding:
    """Sharding of one parameter. The tensor axis splits features of the layers in `FIRST` and `SECOND`; the fsdp axis
    then splits the largest dimension left that it divides, in arrays of at least `min_size` elements."""
    spec: list[str | None] = [None] * len(shape)
    feature = -1 if FIRST.search(path) else -2 if SECOND.search(path) else None
    if feature and len(shape) >= -feature and mesh.shape["tensor"] > 1 and shape[feature] % mesh.shape["tensor"] == 0:
        spec[feature] = "tensor"
    if mesh.shape["fsdp"] > 1 and math.prod(shape) >= min_size:
        for axis in sorted(range(len(shape)), key=lambda i: shape[i], reverse=True):
            if spec[axis] is None and shape[axis] % mesh.shape["fsdp"] == 0:
                spec[axis] = "fsdp"
                break
    while spec and spec[-1] is None:
        spec.pop()
    return NamedSharding(mesh, P(*spec))


def parameters_sharding(mesh: Mesh, params: Mapping[str, Any]) -> dict[str, NamedSharding]:
    """Shardings of parameters by path, in training and in sampling."""
    return {path: parameter_sharding(mesh, path, value.shape) for path, value in params.items()}


def with_sharding(mesh: Mesh, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """Adds their shardings to the shapes of parameters by path."""
    where = parameters_sharding(mesh, shapes)
    return {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[path]) for path, x in shapes.items()}


def tree_sharding(mesh: Mesh, tree: Any) -> Any:
    """Shardings of a tree's leaves by parameter path, the last key that leads to each: parameters, moments and averages
    are sharded alike. Raises InputError if the mesh has a tensor axis and there is nothing for it to split."""
    place = lambda keys, leaf: parameter_sharding(mesh, str(getattr(keys[-1], "key", "")) if keys else "", leaf.shape)
    found = jax.tree_util.tree_map_with_path(place, tree)
    if mesh.shape["tensor"] > 1 and not any("tensor" in sharding.spec for sharding in jax.tree.leaves(found)):
        raise InputError(
            f"mesh tensor={mesh.shape['tensor']} divides the features of no attention, feed-forward or residual layer "
            "of this stage: set config.mesh.tensor=1"
        )
    return found


def shard_batch(tree: Any) -> Any:
    """Constrains axis 0 of traced arrays to the data and fsdp axes of the mesh that `jax.set_mesh` has set."""
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, P(BATCH_AXES)), tree)


def gather_in_loop(params: Any, x: jax.Array) -> Any:
    """Returns traced parameters for the body of a loop that computes `x` in every iteration. What fsdp splits is then
    gathered layer by layer in every iteration, as in training; XLA would gather all of it before the loop."""
    cut = dict(jax.sharding.get_abstract_mesh().shape).get("fsdp", 1) > 1
    return jax.lax.optimization_barrier((params, x))[0] if cut else params


def put_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Puts this process's share of the global batch onto its devices."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda value: jax.make_array_from_process_local_data(sharding, value), dict(batch))
