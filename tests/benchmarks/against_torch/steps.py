"""A training step on either side: loss, gradients of what trains, norm clipped to 1, AdamW."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from einops import rearrange
from flax import nnx
from turns import Options

from vidjax.runtime.compiling import jit
from vidjax.training.optimizer import make_optimizer
from vidjax.training.state import TrainState
from vidjax.training.step import make_train_step

RATE, DECAY = 3e-5, 1e-2


def apart(got: Any, wanted: torch.Tensor, axes: str) -> float:
    """Relative; `axes` says how theirs becomes like ours."""
    other = rearrange(wanted.detach().float().cpu().numpy(), axes)
    return float(np.linalg.norm(np.asarray(got, np.float32) - other) / np.linalg.norm(other))


def moments(latents: np.ndarray) -> np.ndarray:
    """As a codec leaves them, with next to no variance."""
    return np.concatenate([latents, np.full_like(latents, -30.0)], -1)


def optimizer() -> Any:
    return make_optimizer(steps=500, learning_rate=RATE, weight_decay=DECAY, clip=1.0)


def ours(
    model: nnx.Module, objective: Callable, batch: Any, options: Options, trainable: Callable = lambda path: True
) -> tuple[Callable[[], Any], int]:
    """(step, how many parameters it trains)."""
    states = [TrainState.create(model, optimizer(), trainable, averaged=lambda path: False)]
    step = make_train_step(objective, optimizer(), 0, ema=0.0, dtype=options.dtype)
    compiled, batch = jit(step, donate_argnums=0), jax.device_put(batch)

    def run() -> jax.Array:
        states[0], metrics = compiled(states[0], batch)
        return metrics["loss"]

    return run, sum(p.size for p in states[0].params.values())


def theirs(
    model: torch.nn.Module,
    loss: Callable[[], torch.Tensor],
    options: Options,
    trainable: Callable[[str], bool] = lambda name: True,
) -> tuple[Callable[[], float], int]:
    """(step, how many parameters it trains)."""
    params = [p for name, p in model.named_parameters() if trainable(name)]
    for p in params:
        p.requires_grad_(True)
    adamw = torch.optim.AdamW(params, lr=RATE, weight_decay=DECAY, fused=True)

    def step() -> float:
        adamw.zero_grad(set_to_none=True)
        with options.autocast():
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        adamw.step()
        return value.item()

    return step, sum(p.numel() for p in params)


def refill(model: torch.nn.Module) -> torch.nn.Module:
    """Random numbers in every parameter: what starts at zero would hide an error, and its gradient."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = p.ndim == 1 and name.endswith("weight")
            p.normal_(float(scale), 0.1 if p.ndim == 1 else p[0].numel() ** -0.5, generator=generator)
    return model.eval()
