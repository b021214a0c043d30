"""The optimizer against AdamW written out in numpy, and the schedules against their formulas."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidjax.errors import InputError
from vidjax.training.optimizer import decays, learning_rate_schedule, make_optimizer

RNG = np.random.default_rng(0)
PARAMS = {name: RNG.normal(size=(3, 2)).astype(np.float32) for name in ("a.kernel", "b.embedding")}
GRADS = [{name: 5 * RNG.normal(size=(3, 2)).astype(np.float32) for name in PARAMS} for _ in range(4)]


def adamw(params, grads, rate, decay, clip):
    """Loshchilov & Hutter 2019, algorithm 2, with the gradient's global norm clipped and decay on kernels alone."""
    p = {k: v.astype(np.float64) for k, v in params.items()}
    m, v = {k: 0.0 for k in p}, {k: 0.0 for k in p}
    for n, g in enumerate(grads, 1):
        norm = np.sqrt(sum(np.square(x).sum() for x in g.values()))
        for k in p:
            x = g[k] * min(1, clip / norm)
            m[k], v[k] = 0.9 * m[k] + 0.1 * x, 0.999 * v[k] + 0.001 * x**2
            update = m[k] / (1 - 0.9**n) / (np.sqrt(v[k] / (1 - 0.999**n)) + 1e-8)
            p[k] = p[k] - rate * (update + decay * p[k] * k.endswith("kernel"))
    return p


def test_it_is_adamw_with_clipping_and_masked_decay():
    optimizer = make_optimizer(steps=10, learning_rate=1e-2, weight_decay=0.1, clip=1.0)
    params = {k: jnp.asarray(v) for k, v in PARAMS.items()}
    state = optimizer.init(params)
    for grads in GRADS:
        updates, state = optimizer.update({k: jnp.asarray(v) for k, v in grads.items()}, state, params)
        params = optax.apply_updates(params, updates)
    expected = adamw(PARAMS, GRADS, 1e-2, 0.1, 1.0)
    for name in params:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-5, atol=1e-6)


def test_decay_leaves_biases_norms_and_tables_alone():
    shapes = {
        "conv.kernel": (3, 3, 4, 4),
        "conv.bias": (4,),
        "norm.scale": (4,),
        "tokens.embedding": (9, 4),
        "scale.kernel": (4,),
        "to_q.lora_down": (4, 2),
    }
    decayed = {k for k, yes in decays({k: jnp.zeros(v) for k, v in shapes.items()}).items() if yes}
    assert decayed == {"conv.kernel", "to_q.lora_down"}


def test_schedules_are_their_formulas():
    steps, warmup, peak = 100, 10, 0.5
    rates = {n: learning_rate_schedule(peak, n, warmup, steps) for n in ("constant", "linear", "cosine")}
    for rate in rates.values():  # the warm-up is a straight line that never is zero and meets the peak
        np.testing.assert_allclose(np.diff([rate(i) for i in range(warmup + 1)], 2), 0, atol=1e-7)
        assert rate(0) == pytest.approx(peak / warmup) and rate(warmup) == pytest.approx(peak)
    after = (np.arange(warmup, steps + 1) - warmup) / (steps - warmup)
    at = lambda name: np.array([rates[name](i) for i in range(warmup, steps + 1)])
    np.testing.assert_allclose(at("constant"), peak, rtol=1e-6)
    np.testing.assert_allclose(at("linear"), peak * (1 - after), atol=1e-6)
    np.testing.assert_allclose(at("cosine"), peak * (1 + np.cos(np.pi * after)) / 2, atol=1e-6)


def test_without_warmup_the_first_step_is_at_the_peak():
    assert learning_rate_schedule(0.5, "cosine", 0, 10)(0) == pytest.approx(0.5)


def test_an_unknown_schedule_is_named():
    with pytest.raises(InputError, match=r"config.optimizer.schedule 'cosin' .*'cosine'"):
        make_optimizer(steps=1, schedule="cosin")


def test_groups_have_settings_and_clipping_of_their_own():
    rate = dict(steps=10, learning_rate=1e-2, weight_decay=0.1, clip=1.0)
    grouped = make_optimizer(**rate, groups={"a": dict(learning_rate=1e-3, clip=0.5)})
    other = make_optimizer(**rate | dict(learning_rate=1e-3, clip=0.5))
    alone = {"a.kernel": other, "b.embedding": make_optimizer(**rate)}
    params = {k: jnp.asarray(v) for k, v in PARAMS.items()}
    state, own = grouped.init(params), {k: o.init({k: params[k]}) for k, o in alone.items()}
    for grads in GRADS:
        updates, state = grouped.update({k: jnp.asarray(v) for k, v in grads.items()}, state, params)
        for k, optimizer in alone.items():
            expected, own[k] = optimizer.update({k: jnp.asarray(grads[k])}, own[k], {k: params[k]})
            np.testing.assert_array_equal(updates[k], expected[k])
        params = optax.apply_updates(params, updates)
    with pytest.raises(InputError, match=r"groups\.c: no parameter is under that path"):
        make_optimizer(**rate, groups={"c": {}}).init(params)
    with pytest.raises(InputError, match="did you mean 'clip'"):
        make_optimizer(**rate, groups={"a": dict(clipp=1.0)})
