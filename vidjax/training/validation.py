"""Measures the loss on held-out windows by noise level: it shows where a model overfits."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidjax.diffusion.draws import draws_at
from vidjax.diffusion.schedule import Schedule
from vidjax.runtime.compiling import jit
from vidjax.runtime.processes import gather
from vidjax.training.state import TrainState
from vidjax.training.step import Batch, Objective

LEVELS = 8  # bins, each with as large a share of the training times
VALIDATION_CLIPS = 32  # at most, evenly spread over the data set


def by_noise_level(
    objective: Objective, schedule: Schedule, dtype: str = "float32"
) -> Callable[[TrainState, Batch], dict[str, Any]]:
    """Makes `losses(state, batch)`, which returns the averaged parameters' loss at each of `LEVELS` noise levels, named
    by the log-SNR in the middle of the bin, and the mean of all. Noise, masks and dropped captions are the same at
    every call. The model computes in `dtype`, on the mesh that `jax.set_mesh` names; all processes call together."""

    @jit
    def losses(state: TrainState, batch: Batch) -> jax.Array:
        model, count = state.model(dtype=dtype), len(batch["label"])
        draws = draws_at(jax.random.key(0), state.step * 0, count)

        def at(level: jax.Array) -> jax.Array:
            uniforms = (level + (jnp.arange(count) + 0.5) / count) / LEVELS
            return objective(model, batch, dataclasses.replace(draws, uniforms=uniforms))[0]

        return jax.lax.map(at, jnp.arange(LEVELS))

    middle = jax.jit(lambda u: schedule.logsnr(schedule.sample_t(u)))((np.arange(LEVELS) + np.float32(0.5)) / LEVELS)
    names = [f"validation/logsnr_{value:+.1f}" for value in np.asarray(middle)]

    def named(state: TrainState, batch: Batch) -> dict[str, Any]:
        found = np.asarray(gather(losses(state, batch)))
        return {"validation/loss": found.mean(), **dict(zip(names, found))}

    return named
