"""One training step, pure: loss, gradients, update, average, metrics."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vidjax.diffusion.draws import Draws, draws_at
from vidjax.models.parameters import cast, merge
from vidjax.training.state import TrainState

Batch = dict[str, Any]
Metrics = dict[str, Any]


Objective = Callable[[Any, Batch, Draws], tuple[Float[Array, ""], Metrics]]


def ema_decay(decay: float, step: Array) -> Array:
    """Returns min(d, (1 + n) / (10 + n)): the average forgets its start."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    ema: float = 0.9999,
    accumulate: int = 1,
    dtype: str = "float32",
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`step(state, batch) -> (state, metrics)`, to be jitted. `objective(model, batch, draws) -> (loss, metrics)`.

    The model computes in `dtype`; parameters, moments, the average and whatever the objective keeps in fp32 stay fp32.
    With `accumulate` = k the batch is worked off in k micro-batches; the update is that of the whole batch.
    """

    def loss_and_grads(state: TrainState, batch: Batch, draws: Draws):
        def loss(params):
            model = merge(state.graphdef, cast(params, jnp.dtype(dtype)), cast(state.frozen, jnp.dtype(dtype)))
            return objective(model, batch, draws)

        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return grads, {"loss": value, **metrics}

    def accumulated(state: TrainState, batch: Batch, draws: Draws):
        if accumulate == 1:
            return loss_and_grads(state, batch, draws)
        # Each device keeps its own examples: micro-batch m takes every k-th one.
        whole = (batch, draws.keys, draws.uniforms)
        micro = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), whole)
        # jitted, it is traced for the shapes alone, and not for the loop again
        work = jax.jit(lambda state, step, *part: loss_and_grads(state, part[0], Draws(*part[1:], step)))
        first = jax.eval_shape(lambda: work(state, draws.step, *jax.tree.map(lambda x: x[0], micro)))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
        add = lambda total, part: (jax.tree.map(jnp.add, total, work(state, draws.step, *part)), None)
        total, _ = jax.lax.scan(add, zeros, micro)
        return jax.tree.map(lambda x: x / accumulate, total)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch_size = jax.tree.leaves(batch)[0].shape[0]
        draws = draws_at(jax.random.key(seed), state.step, batch_size)
        grads, metrics = accumulated(state, batch, draws)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        d = ema_decay(ema, state.step)
        average = {path: d * a + (1 - d) * params[path] for path, a in state.ema.items()}
        metrics |= {"grad_norm": optax.global_norm(grads)}
        if hasattr(opt_state, "skipped"):
            metrics |= {"skipped_steps": opt_state.skipped}
        new = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state, ema=average)
        return new, metrics

    return step
