"""Where activations live: the mesh around a computation cuts clips into frames, layers over time into pixels.

The mesh is the one that `jax.set_mesh` names; without one, or with one device on an axis, nothing here does anything.
What XLA cannot see through a reshape (batch and frames become one axis for a convolution or an attention kernel) is
done by each device on its own part.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from vidjax.errors import InputError
from vidjax.models import kernels
from vidjax.runtime.platforms import platform
from vidjax.runtime.sharding import BATCH_AXES

# What a layer calls an axis of its input -> axes of the mesh.
AXES = {"batch": BATCH_AXES, "context": ("context",), "heads": ("tensor",)}
Spec = tuple[str | None, ...]  # for the first axes of an array what cuts them


def ways(name: str) -> int:
    """Into how many parts the mesh cuts the "batch", the "context" or the "heads"."""
    shape = dict(jax.sharding.get_abstract_mesh().shape)
    return math.prod(shape.get(axis, 1) for axis in AXES[name])


def local(function: Callable[..., Array], *parts: tuple[Any, Spec], out: Spec, every_axis: bool = False) -> Array:
    """`function(*arrays)` of (array, spec) pairs, on each device for its own part; what it gives is cut as `out` says.

    Axes of the mesh that do not divide the arrays are left out: each device along them does the same work. Where the
    function holds a kernel that XLA cannot divide, a device must do its part by itself along `every_axis` of the mesh;
    otherwise XLA divides the work along axes that no spec names.
    """
    fits = lambda name: all(
        array is None or array.shape[i] % ways(name) == 0
        for array, spec in parts
        for i, cut in enumerate(spec)
        if cut == name
    )
    used = [name for name in AXES if ways(name) > 1 and fits(name) and any(name in spec for _, spec in parts)]
    arrays = [array for array, _ in parts]
    mesh = jax.sharding.get_abstract_mesh()
    if not used and not (every_axis and mesh.size > 1):
        return function(*arrays)
    to_mesh = lambda spec: P(*(AXES[cut] if cut in used else None for cut in spec))
    specs = tuple(to_mesh(spec) for _, spec in parts)
    if every_axis:  # the kernels' results do not say over which axes they differ, so JAX cannot check it
        return jax.shard_map(function, in_specs=specs, out_specs=to_mesh(out), check_vma=False)(*arrays)
    names = {axis for name in used for axis in AXES[name]}

    def own(*shares: Array) -> Array:
        # What devices hold alike becomes each one's own: gradients written by hand leave out the sum that this adds.
        alike = [tuple(axis for name in used if name not in spec for axis in AXES[name]) for _, spec in parts]
        apart = lambda axes, share: jax.tree.map(lambda x: jax.lax.pcast(x, axes, to="varying") if axes else x, share)
        return function(*map(apart, alike, shares))

    return jax.shard_map(own, in_specs=specs, out_specs=to_mesh(out), axis_names=names)(*arrays)


def tpu_has_whole_clips() -> bool:
    """Whether the program is a TPU's and has all frames of a clip on one device: these may be one axis with the batch,
    or be added one to the next."""
    return platform() == "tpu" and ways("context") == 1 and not kernels.choice().textbook


def whole(weights: Float[Array, " *s"]) -> Float[Array, " *s"]:
    """Has a layer's weights, which fsdp cuts, travel before the layer computes with them, on TPUs.

    XLA's compiler for these would otherwise have the layer compute with one device's part while the next travels: of
    256 features 64 at a time, which fill half of the rows of a matrix unit. Without `train.remat` they stay whole until
    the backward pass has used them.
    """
    shape = dict(jax.sharding.get_abstract_mesh().shape)
    if platform() != "tpu" or shape.get("fsdp", 1) == 1 or shape.get("tensor", 1) > 1:
        return weights
    return jax.lax.with_sharding_constraint(weights, P())


def to_pixels(x: Float[Array, "b t n *s"]) -> Float[Array, "b t n *s"]:
    """From a share of the frames to all frames of a share of axis 2 (pixels or rows): what a layer over time wants.

    Raises InputError if the context axis does not divide the frames. Where it does not divide axis 2, as on small
    maps, every device along it gets all.
    """
    if x.shape[1] % ways("context"):
        raise InputError(
            f"mesh context={ways('context')} does not divide {x.shape[1]} (latent) frames: set config.mesh.context to "
            f"a divisor of {x.shape[1]}"
        )
    return _exchange(x, 1, 2)


def to_frames(x: Float[Array, "b t n *s"]) -> Float[Array, "b t n *s"]:
    """Back."""
    return _exchange(x, 2, 1)


def _exchange(x: Array, cut: int, whole: int) -> Array:
    """Axis `cut` is cut, axis `whole` will be."""
    if ways("context") == 1 or x.shape[2] % ways("context"):
        return x
    spec = lambda axis: ("batch", *(None,) * (axis - 1), "context")
    swap = lambda x: jax.lax.all_to_all(x, "context", whole, cut, tiled=True)
    return local(swap, (x, spec(cut)), out=spec(whole))
