"""The optimizer against torch's AdamW with torch's gradient clipping."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidjax.training.optimizer import make_optimizer

torch = pytest.importorskip("torch")


def test_steps_are_those_of_torch():
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=(4, 3)).astype(np.float32) for name in ("a.kernel", "b.bias")}
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [{"params": [theirs["a.kernel"]]}, {"params": [theirs["b.bias"]], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    warmup = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: min(1, 1 / 4 + 3 / 4 * step / 4))

    optimizer = make_optimizer(steps=20, learning_rate=1e-2, warmup=4, b2=0.98, eps=1e-6, weight_decay=0.1, clip=0.5)
    ours = {name: jnp.asarray(value) for name, value in start.items()}
    state = optimizer.init(ours)
    for _ in range(8):
        grads = {name: rng.normal(size=(4, 3)).astype(np.float32) for name in start}
        updates, state = optimizer.update({name: jnp.asarray(g) for name, g in grads.items()}, state, ours)
        ours = optax.apply_updates(ours, updates)
        for name, g in grads.items():
            theirs[name].grad = torch.tensor(g)
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), 0.5)
        adamw.step()
        warmup.step()
    for name in start:
        np.testing.assert_allclose(ours[name], theirs[name].detach().numpy(), rtol=1e-5, atol=1e-6)
