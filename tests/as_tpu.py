"""What is traced for a TPU, computed here."""

from collections.abc import Callable
from typing import Any

import jax


def on_tpu(function: Callable, *args: Any) -> tuple[Any, str]:
    """What a TPU's program computes, computed here as one program, and its text."""
    tpu = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=tpu)):
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    run = jax.jit(lambda args: jax.core.eval_jaxpr(traced.jaxpr, traced.consts, *jax.tree.leaves(args)))
    return jax.tree.unflatten(jax.tree.structure(shapes), run(args)), str(traced)
