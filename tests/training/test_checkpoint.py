"""What was saved comes back bit for bit, whatever happens to the process or the arrays meanwhile."""

import dataclasses
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vidjax.errors import InputError
from vidjax.training.checkpoint import Checkpoints, read_json
from vidjax.training.state import TrainState

OPTIMIZER = optax.adam(1e-3)


def toy(step: int, width: int = 512, trainable=lambda path: True) -> TrainState:
    """A state whose arrays (1 MB the kernel) hold numbers that depend on the step."""
    state = TrainState.create(nnx.Linear(512, width, rngs=nnx.Rngs(step)), OPTIMIZER, trainable)
    moments = jax.tree.map(lambda x: x + step, state.opt_state)
    average = jax.tree.map(lambda x: x * 2, state.params)
    return dataclasses.replace(state, step=jnp.int32(step), opt_state=moments, ema=average)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_round_trip_is_exact(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(toy(3))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 3
        equal(checkpoints.restore(toy(0)).saved(), toy(3).saved())
        equal(checkpoints.restore_ema(toy(0).params), toy(3).ema)


def test_a_donated_step_right_after_saving_leaves_the_saved_values_alone(tmp_path):
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = step(toy(0))
    expected = jax.tree.map(np.array, state.saved())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        for _ in range(5):
            state = step(state)
        jax.block_until_ready(state)
    with Checkpoints(tmp_path) as checkpoints:
        equal(jax.tree.map(np.array, checkpoints.restore(toy(0)).saved()), expected)


def test_only_the_last_and_the_periodic_ones_stay(tmp_path):
    with Checkpoints(tmp_path, keep=2, keep_every=4) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(toy(step, width=2))
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()) == [4, 6, 7]


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(toy(3, width=2))
        checkpoints.save(dataclasses.replace(toy(4, width=2), step=jnp.int32(3)))
    with Checkpoints(tmp_path) as checkpoints:
        equal(checkpoints.restore(toy(0, width=2)).saved(), toy(3, width=2).saved())


def test_frozen_parameters_are_not_saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(toy(3, trainable=lambda path: path == "bias"))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 512 * 512 * 4 / 4


def test_a_kill_in_the_middle_of_saving_leaves_the_last_complete_one(tmp_path):
    script = f"""
        import os, signal
        from training.test_checkpoint import Checkpoints, toy
        checkpoints = Checkpoints({str(tmp_path)!r})
        checkpoints.save(toy(1))
        checkpoints._manager.wait_until_finished()
        checkpoints.save(toy(2, width=2048))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command, here = [sys.executable, "-c", textwrap.dedent(script)], Path(__file__).parents[1]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        equal(checkpoints.restore(toy(0)).saved(), toy(1).saved())
        checkpoints.save(toy(2))  # and the step that was cut short can be saved again
    with Checkpoints(tmp_path) as checkpoints:
        equal(checkpoints.restore(toy(0)).saved(), toy(2).saved())


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(toy(3))
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(InputError, match=r"of another model: bias is \[512\] there and \[2\] here") as error:
            checkpoints.restore(toy(0, width=2))
        assert str(tmp_path) in str(error.value)
        with pytest.raises(InputError, match=r"kernel is \[512, 512\] there and absent here"):
            checkpoints.restore_ema({"bias": toy(0).params["bias"]})


def test_nothing_saved_is_an_error_that_names_the_folder(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        with pytest.raises(InputError, match=f"no complete checkpoint in {tmp_path}"):
            checkpoints.restore(toy(0, width=2))
    with pytest.raises(InputError, match=r"config\.json does not exist"):
        read_json(tmp_path / "config.json")
