"""A step that is left out, against the same steps without it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidjax.errors import InputError
from vidjax.training.optimizer import LEAST, WINDOW, make_optimizer

HOW = dict(steps=1000, learning_rate=1e-2, weight_decay=0.1)
RNG = np.random.default_rng(0)
GRADS = [{"a.kernel": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32)} for _ in range(40)]


def trained(optimizer, grads):
    params = {"a.kernel": jnp.ones((3, 2))}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for grad in grads:
        updates, state = update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return params["a.kernel"], state


@pytest.mark.parametrize("groups", [None, {"a": dict(learning_rate=1e-3)}])
def test_an_outlier_changes_nothing(groups):
    spike = {"a.kernel": 100 * GRADS[0]["a.kernel"]}
    guarded = make_optimizer(**HOW, groups=groups, skip_spikes=10.0)
    params, state = trained(guarded, [*GRADS[:20], spike, *GRADS[20:]])
    without, _ = trained(make_optimizer(**HOW, groups=groups), GRADS)
    np.testing.assert_array_equal(params, without)
    assert state.skipped == 1
    unguarded, _ = trained(make_optimizer(**HOW, groups=groups), [*GRADS[:20], spike, *GRADS[20:]])
    assert np.abs(unguarded - without).max() > 1e-4


def test_a_lasting_change_and_the_first_steps_are_no_outliers():
    small = [{"a.kernel": 1e-3 * grad["a.kernel"]} for grad in GRADS]
    guarded = make_optimizer(**HOW, skip_spikes=10.0)
    assert trained(guarded, [*small[: LEAST - 1], GRADS[0]])[1].skipped == 0
    later = trained(guarded, [*small, *(3 * GRADS)])[1].skipped
    assert 0 < later <= WINDOW // 2 + 1  # then half of what it knows is large


def test_what_is_not_finite_goes_through_so_that_the_run_stops():
    guarded = make_optimizer(**HOW, skip_spikes=10.0, clip=None)
    for value in (np.nan, np.inf):
        params, _ = trained(guarded, [*GRADS, {"a.kernel": jnp.full((3, 2), value)}])
        assert not np.isfinite(params).all()


def test_a_factor_that_would_skip_every_other_step_is_refused():
    with pytest.raises(InputError, match=r"skip_spikes=0.5 is not above 1"):
        make_optimizer(**HOW, skip_spikes=0.5)
