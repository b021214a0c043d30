"""Null-text inversion (Mokady et al. 2022, arXiv:2211.09794): a null caption a step that makes guided DDIM come back.

Guidance drives DDIM off the path of its inversion; the features that stand for the empty caption are optimised, step
by step, until it stays there. Nothing of the network changes, so that edits keep its knowledge.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vidjax.diffusion.samplers import Denoiser, ddim, ddim_inverse
from vidjax.diffusion.schedule import Schedule

Times = Float[Array, " n"]


def pivots(denoise: Denoiser, schedule: Schedule, x0: Float[Array, "b t h w c"], times: Times) -> Float[Array, "n ..."]:
    """DDIM's inversion of x0, all of it: where it is at each of the decreasing `times`, noise first and x0 last."""
    step, upwards = ddim_inverse().step, times[::-1]

    def up(x, pair):
        x, _ = step(_scalar(denoise), schedule, x, *pair, (), None)
        return x, x

    _, path = jax.lax.scan(up, x0, (upwards[:-1], upwards[1:]))
    return jnp.concatenate([path[::-1], x0[None]])


def null_text(
    conditional: Denoiser,
    unconditional: Callable[[Array], Denoiser],
    schedule: Schedule,
    path: Float[Array, "n b t h w c"],
    times: Times,
    tokens: Float[Array, "b m d"],
    scale: float | Array,
    *,
    steps: int = 10,
    learning_rate: float = 1e-2,
) -> tuple[Float[Array, "s b m d"], Float[Array, "b t h w c"]]:
    """Tokens for each step of guided DDIM from `path[0]`, and where it ends with them (algorithm 1).

    `unconditional(tokens)` is the denoiser under these null tokens; each step starts from those of the step before, the
    first from `tokens`. At most `steps` updates by Adam a step, their rate falling to half over the steps, until the
    squared error is below 1e-5: the released code's figures.
    """
    optimizer = optax.scale_by_adam()
    advance = ddim().step

    def one(carry, inputs):
        (x, tokens), (i, t, t_next, aim) = carry, inputs
        cond = _scalar(conditional)(x, t)

        def guided(tokens):
            null = _scalar(unconditional(tokens))(x, t)
            answer = tuple(u + scale * (c - u) for c, u in zip(cond, null))
            return advance(lambda x, t: answer, schedule, x, t, t_next, (), None)[0]

        error = lambda tokens: jnp.square(guided(tokens) - aim).mean()

        def update(state):
            n, tokens, moments, _ = state
            value, gradient = jax.value_and_grad(error)(tokens)
            change, moments = optimizer.update(gradient, moments)
            better = tokens - learning_rate * (1 - 0.5 * i / len(times)) * change
            near = value < 1e-5
            return n + 1, jnp.where(near, tokens, better), moments, near

        going = lambda state: (state[0] < steps) & ~state[3]
        _, tokens, _, _ = jax.lax.while_loop(going, update, (0, tokens, optimizer.init(tokens), jnp.bool_(False)))
        return (guided(tokens), tokens), tokens

    inputs = jnp.arange(len(times) - 1), times[:-1], times[1:], path[1:]
    (x, _), found = jax.lax.scan(one, (path[0], tokens), inputs)
    return found, x


def at_time(table: Float[Array, "s b m d"], times: Times, t: Float[Array, "b t"]) -> Float[Array, "b m d"]:
    """The entry of a table of steps that belongs to the step from `t`."""
    return table[jnp.abs(times[: len(table)] - t[0, 0]).argmin()]


def _scalar(denoise: Denoiser) -> Denoiser:
    return lambda x, t: denoise(x, jnp.broadcast_to(t, x.shape[:2]))
