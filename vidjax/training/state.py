"""What a training run consists of between two steps: plain dicts from parameter path to array."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """`params` train; `frozen` are only read, and have neither moments nor average; `ema` averages some of `params`."""

    step: Any  # an int32 array, or its shape
    params: Params
    frozen: Params
    opt_state: Any
    ema: Params
    graphdef: Any = dataclasses.field(metadata={"static": True})

    @classmethod
    def create(
        cls,
        model: nnx.Module,
        optimizer: optax.GradientTransformation,
        trainable=lambda path: True,
        *,
        averaged=lambda path: True,
        frozen_dtype: str | None = None,
    ) -> "TrainState":
        """The state at step 0. `frozen_dtype`, such as "bfloat16", is what the frozen part is kept in; `averaged` says
        of which trainable paths there is an average."""
        params, frozen = split(parameters(model), trainable)
        if frozen_dtype is not None:
            frozen = cast(frozen, jnp.dtype(frozen_dtype))
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            frozen=frozen,
            opt_state=optimizer.init(params),
            ema={path: jnp.copy(value) for path, value in params.items() if averaged(path)},
            graphdef=nnx.graphdef(model),
        )

    def model(self, params: Params | None = None, dtype: str = "float32") -> Any:
        """The model with the averaged parameters where there are, or with those given in their place, in `dtype`."""
        params = {**self.params, **self.ema} if params is None else params
        return merge(self.graphdef, cast(params, jnp.dtype(dtype)), cast(self.frozen, jnp.dtype(dtype)))

    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds: everything but the frozen part, which lives elsewhere."""
        return {"step": self.step, "params": self.params, "opt_state": self.opt_state, "ema": self.ema}
