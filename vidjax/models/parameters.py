"""Parameters by path: plain dicts from a parameter's path to its array, and the models that hold them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vidjax.errors import InputError

Params = dict[str, Any]  # "unet.down.0.resnet.conv1.kernel" -> array


def parameters(model: nnx.Module) -> Params:
    """The model's parameters by path. Paths are public API: checkpoints, filters and converters speak them."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): leaf[...] for path, leaf in flat}


def abstract_parameters(model: nnx.Module | nnx.State) -> Params:
    """Shapes and dtypes of the parameters of an abstract model, or of its state, by path."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in flat}


def cast(tree: Any, dtype: jnp.dtype) -> Any:
    """Floating-point leaves to `dtype`, the rest as they are."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def merge(graphdef: nnx.GraphDef, *params: Params) -> Any:
    """The model that `graphdef` describes, with these parameters."""
    flat: Any = {
        tuple(int(k) if k.isdigit() else k for k in path.split(".")): v for d in params for path, v in d.items()
    }
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def split(params: Params, trainable: Callable[[str], bool]) -> tuple[Params, Params]:
    """(trainable, frozen) by a predicate on paths; a predicate that matches nothing raises InputError."""
    chosen = {path: value for path, value in params.items() if trainable(path)}
    if not chosen:
        raise InputError(
            f"no parameter is trainable: the filter matches none of {len(params)} paths, such as {min(params)}"
        )
    return chosen, {path: value for path, value in params.items() if path not in chosen}
