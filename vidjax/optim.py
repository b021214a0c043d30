"""AdamW with a learning-rate schedule, clipping, and weight decay on kernels alone."""

import jax
import optax

from vidjax.settings import choose

SCHEDULES = {
    "constant": lambda peak, warmup, steps: optax.constant_schedule(peak),
    "linear": lambda peak, warmup, steps: optax.linear_schedule(peak, 0.0, max(steps - warmup, 1)),
    "cosine": lambda peak, warmup, steps: optax.cosine_decay_schedule(peak, max(steps - warmup, 1)),
}


def learning_rate_schedule(peak: float, name: str, warmup: int, steps: int) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup` steps, then by name to the last of `steps`."""
    after = choose(name, SCHEDULES, "config.optimizer.schedule")(peak, warmup, steps)
    return optax.join_schedules([optax.linear_schedule(peak / max(warmup, 1), peak, warmup), after], [warmup])


def decays(params: dict[str, jax.Array]) -> dict[str, bool]:
    """Weight decay shrinks matrices, kernels and adapters; biases, norms, embeddings and positions stay out."""
    return {
        path: value.ndim > 1 and path.endswith(("kernel", "lora_down", "lora_up")) for path, value in params.items()
    }


def make_optimizer(
    *,
    steps: int,
    learning_rate: float = 1e-4,
    schedule: str = "constant",
    warmup: int = 0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    clip: float | None = 1.0,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) on a dict of parameters; `clip` bounds the global norm of the gradient."""
    rate = learning_rate_schedule(learning_rate, schedule, warmup, steps)
    adamw = optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decays)
    return optax.chain(optax.clip_by_global_norm(clip), adamw) if clip else adamw
