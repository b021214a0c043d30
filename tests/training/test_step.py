"""The training step on a toy model: two routes to one update, the average's formula, what may change and what not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vidjax.diffusion.draws import PLACES, Draws, draws_at
from vidjax.errors import InputError
from vidjax.models.parameters import merge, parameters, split
from vidjax.training.state import TrainState
from vidjax.training.step import ema_decay, make_train_step


class Toy(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 6, rngs=rngs)])
        self.frozen = nnx.Linear(6, 6, rngs=rngs)

    def __call__(self, x):
        return self.layers[1](jnp.tanh(self.layers[0](self.frozen(x))))


def objective(model, batch, draws):
    """A denoising loss that uses every kind of draw."""
    times, noise = draws.named("times"), draws.named("noise")
    noisy = batch["x"] + times.uniforms[:, None] * noise.normal((6,))
    error = jnp.square(model(noisy.astype(model.frozen.kernel.dtype)).astype(jnp.float32) - batch["x"])
    return error.mean(), {"mean_time": times.uniforms.mean()}


BATCH = {"x": jax.random.normal(jax.random.key(1), (8, 6)), "label": jnp.arange(8)}
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))


def fresh(trainable=lambda path: not path.startswith("frozen")) -> TrainState:
    return TrainState.create(Toy(nnx.Rngs(0)), OPTIMIZER, trainable)


def run(state, steps=3, **options):
    step = jax.jit(make_train_step(objective, OPTIMIZER, seed=7, **options))
    history = []
    for _ in range(steps):
        state, metrics = step(state, BATCH)
        history.append(metrics)
    return state, history


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_a_batch_in_four_parts_gives_the_update_of_the_whole():
    whole, one = run(fresh())
    parts, four = run(fresh(), accumulate=4)
    close(whole.params, parts.params, rtol=1e-5, atol=1e-7)
    close(one, four, rtol=1e-5)


def test_bf16_computes_coarsely_and_stores_finely():
    fine, exact = run(fresh(), steps=1)
    coarse, rounded = run(fresh(), steps=1, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves((coarse.params, coarse.ema))} == {jnp.dtype("float32")}
    error = abs(float(rounded[0]["loss"]) / float(exact[0]["loss"]) - 1)
    assert 0 < error < 2**-7
    moved = lambda state: np.concatenate([(v - fresh().params[k]).ravel() for k, v in state.params.items()])
    cosine = np.dot(moved(fine), moved(coarse)) / np.linalg.norm(moved(fine)) / np.linalg.norm(moved(coarse))
    assert cosine > 0.95


def test_frozen_parameters_stay_and_cost_no_moments():
    start = fresh()
    end, _ = run(start)
    assert sorted(end.frozen) == ["frozen.bias", "frozen.kernel"]
    for path, value in start.frozen.items():
        np.testing.assert_array_equal(end.frozen[path], value)
    trained = sum(value.size for value in end.params.values())
    moments = [leaf for leaf in jax.tree.leaves(end.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * trained and end.ema.keys() == end.params.keys()
    assert all(np.any(end.params[path] != start.params[path]) for path in end.params)


def test_the_average_follows_its_formula():
    step = jax.jit(make_train_step(objective, OPTIMIZER, seed=7, ema=0.3))
    state = fresh()
    average = {path: np.asarray(value, np.float64) for path, value in state.params.items()}
    for n in range(6):
        state, _ = step(state, BATCH)
        d = min(0.3, (1 + n) / (10 + n))
        average = {path: d * a + (1 - d) * np.asarray(state.params[path]) for path, a in average.items()}
    close(state.ema, average, rtol=1e-5, atol=1e-7)
    assert float(ema_decay(0.3, jnp.int32(100))) == pytest.approx(0.3)


def test_a_resumed_run_draws_what_the_uninterrupted_one_drew():
    through, losses = run(fresh(), steps=4)
    halfway, _ = run(fresh(), steps=2)
    resumed, rest = run(jax.tree.map(jnp.array, halfway), steps=2)
    jax.tree.map(np.testing.assert_array_equal, through.saved(), resumed.saved())
    jax.tree.map(np.testing.assert_array_equal, losses[2:], rest)


def test_draws_depend_on_seed_and_step_alone():
    uniforms = lambda seed, step: np.asarray(draws_at(jax.random.key(seed), jnp.int32(step), 8).uniforms)
    np.testing.assert_array_equal(uniforms(0, 3), uniforms(0, 3))
    assert np.all(uniforms(0, 3) != uniforms(0, 4)) and np.all(uniforms(0, 3) != uniforms(1, 3))


def test_uniforms_are_one_in_each_stratum():
    for step in range(20):
        uniforms = np.asarray(draws_at(jax.random.key(0), jnp.int32(step), 8).uniforms)
        np.testing.assert_array_equal(np.floor(8 * uniforms), np.arange(8))


def test_draws_of_different_names_are_independent():
    draws = draws_at(jax.random.key(0), jnp.int32(0), 4096)
    sets = [draws.named(name) for name in ("times", "noise", "own", "one's own")]
    noise = np.concatenate([np.stack([d.normal(()), d.uniforms]) for d in sets])
    correlation = np.corrcoef(noise) - np.eye(8)
    assert np.abs(correlation).max() < 5 / np.sqrt(4096)


@pytest.mark.parametrize("count", [2, 9])
def test_names_keep_the_numbers_that_were_drawn_by_position(count):
    """Runs that began when draws were split by position go on with the same numbers."""
    draws = draws_at(jax.random.key(0), jnp.int32(5), 8)
    for name, (place, *inner) in PLACES.items():
        if place >= count or inner:
            continue
        keys = jax.vmap(lambda key, place=place: jax.random.split(key, count)[place])(draws.keys)
        fresh = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 0)))(keys)
        np.testing.assert_array_equal(*map(jax.random.key_data, (draws.named(name).keys, keys)))
        np.testing.assert_array_equal(draws.named(name).uniforms, fresh if place else draws.uniforms)


def test_an_examples_draws_do_not_depend_on_its_neighbours():
    draws = draws_at(jax.random.key(0), jnp.int32(5), 8)
    half = Draws(draws.keys[4:], draws.uniforms[4:], draws.step)
    np.testing.assert_array_equal(draws.normal((3,))[4:], half.normal((3,)))


def test_a_filter_that_matches_nothing_is_an_error():
    with pytest.raises(InputError, match=r"none of 6 paths, such as frozen\.bias"):
        split(parameters(Toy(nnx.Rngs(0))), lambda path: "lora" in path)


def test_model_of_paths_is_the_model():
    model = Toy(nnx.Rngs(0))
    again = merge(nnx.graphdef(model), *split(parameters(model), lambda path: "kernel" in path))
    np.testing.assert_array_equal(again(BATCH["x"]), model(BATCH["x"]))
    assert sorted(parameters(model))[2:] == [f"layers.{i}.{name}" for i in (0, 1) for name in ("bias", "kernel")]
