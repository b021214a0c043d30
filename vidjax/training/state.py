"""What a training run consists of between two steps: plain dicts from parameter path to array."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from vidjax.models.parameters import Params, cast, merge, parameters, split


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
        run: Callable[..., Any] = lambda begin, params: begin(params),
    ) -> "TrainState":
        """The state at step 0. `frozen_dtype`, such as "bfloat16", is what the frozen part is kept in; `averaged` says
        of which trainable paths there is an average; `run(begin, params)` makes moments and averages."""

        def begin(params: Params) -> tuple[Any, Params]:
            return optimizer.init(params), {path: jnp.copy(each) for path, each in params.items() if averaged(path)}

        params, frozen = split(parameters(model), trainable)
        if frozen_dtype is not None:
            frozen = cast(frozen, jnp.dtype(frozen_dtype))
        opt_state, ema = run(begin, params)
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            frozen=frozen,
            opt_state=opt_state,
            ema=ema,
            graphdef=nnx.graphdef(model),
        )

    def model(self, params: Params | None = None, dtype: str = "float32") -> Any:
        """The model with the averaged parameters where there are, or with those given in their place, in `dtype`."""
        params = {**self.params, **self.ema} if params is None else params
        return merge(self.graphdef, cast(params, jnp.dtype(dtype)), cast(self.frozen, jnp.dtype(dtype)))

    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds: everything but the frozen part, which lives elsewhere."""
        return {"step": self.step, "params": self.params, "opt_state": self.opt_state, "ema": self.ema}
