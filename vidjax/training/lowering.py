"""The training step as a program to be compiled, from shapes alone."""

import dataclasses
from typing import Any

import jax

from vidjax.profiling import layers as profiling
from vidjax.runtime import sharding
from vidjax.training.loop import abstract_state, step_of
from vidjax.training.stage import Stage


def lower_step(stage: Stage, mesh: Any, batch: Any) -> tuple[Any, Any]:
    """Lowers the training step, and returns it with the shapes of the state and where they lie; reads no weights."""
    shapes = abstract_state(stage)
    at = lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)
    state = jax.tree.map(at, shapes, sharding.tree_sharding(mesh, shapes))
    batch = jax.tree.map(lambda shape: at(shape, sharding.batch_sharding(mesh)), batch)
    stage = dataclasses.replace(stage, objective=profiling.named(stage.objective))
    with jax.set_mesh(mesh):  # not before: nothing can run on devices that are there to compile for
        return step_of(stage, mesh, state).lower(state, batch), state
