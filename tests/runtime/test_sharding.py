"""Meshes, placement and batches on eight simulated devices, which need a process of their own."""

import json
import textwrap
from pathlib import Path

import jax
import pytest
from starts import ENV, script

from vidjax.errors import InputError
from vidjax.runtime.sharding import check_batch, make_mesh

PREAMBLE = """
import gc, json
import jax, jax.numpy as jnp, numpy as np
from vidjax.runtime import sharding
from vidjax.errors import InputError

gc.set_threshold(20_000, 20, 20)  # as in conftest.py

def message(call):
    try:
        call()
    except InputError as error:
        return str(error)
"""


def eight_devices(code: str) -> dict:
    """Run a script on eight simulated devices; it leaves what it found in `found`."""
    env = ENV | {"XLA_FLAGS": ENV["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"}
    code = PREAMBLE + textwrap.dedent(code) + "\nprint(json.dumps(found))"
    done = script(code, env=env, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found():
    return eight_devices("""
        mesh = sharding.make_mesh(fsdp=4)
        spec = lambda *shape, path="": [str(axis) for axis in sharding.parameter_sharding(mesh, path, shape).spec]
        found = {"mesh": dict(mesh.shape), "all": dict(sharding.make_mesh(2, 2, 2, 1).shape)}
        shapes = {"kernel": (3, 3, 256, 512), "input": (1024, 64), "odd": (3, 257, 511), "small": (64, 64)}
        found["specs"] = {name: spec(*shape) for name, shape in shapes.items()}
        found["errors"] = {
            "three": message(lambda: sharding.make_mesh(data=3)),
            "three and what is left": message(lambda: sharding.make_mesh(data=-1, fsdp=3)),
            "two free": message(lambda: sharding.make_mesh(data=-1, fsdp=-1)),
            "none": message(lambda: sharding.make_mesh(data=0)),
            "batch": message(lambda: sharding.check_batch(mesh, 12)),
            "micro-batches": message(lambda: sharding.check_batch(mesh, 8, 2)),
            "fits": message(lambda: sharding.check_batch(mesh, 16, 2)),
        }
        batch = {"video": np.arange(16 * 6).reshape(16, 2, 3), "index": np.arange(16)}
        put = sharding.put_batch(mesh, batch)
        shards = sorted(put["video"].addressable_shards, key=lambda s: s.index[0].start or 0)
        found["equal"] = all(np.array_equal(put[k], batch[k]) for k in batch)
        found["pieces"] = [np.array_equal(s.data, batch["video"][2 * i : 2 * i + 2]) for i, s in enumerate(shards)]
        found["bytes"] = {}
        tree = {"a.kernel": jnp.zeros((512, 256)), "a.bias": jnp.zeros(512)}
        placed = jax.device_put(tree, sharding.tree_sharding(mesh, tree))
        found["bytes"] = {k: v.addressable_shards[0].data.nbytes / v.nbytes for k, v in placed.items()}
    """)


def test_what_is_left_goes_to_the_free_axis(found):
    assert found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}
    assert found["all"] == {"data": 2, "fsdp": 2, "tensor": 2, "context": 1}


def test_fsdp_splits_the_largest_dimension_that_it_divides(found):
    assert found["specs"]["kernel"] == ["None", "None", "None", "fsdp"]
    assert found["specs"]["input"] == ["fsdp"]
    assert found["specs"]["odd"] == found["specs"]["small"] == []  # nothing divides; too small to be worth it
    assert found["bytes"] == {"a.kernel": 1 / 4, "a.bias": 1}


def test_a_mesh_that_does_not_fit_says_how_many_devices_there_are(found):
    errors = found["errors"]
    assert "data=3" in errors["three"] and "asks for 3 devices, there are 8" in errors["three"]
    assert "a multiple of 3 devices, there are 8" in errors["three and what is left"]
    assert "one at most is -1" in errors["two free"] and "sizes are positive" in errors["none"]


def test_a_batch_that_the_mesh_does_not_divide_says_what_would_do(found):
    errors = found["errors"]
    assert "batch size 12 is not divisible by 8" in errors["batch"] and "a multiple of 8" in errors["batch"]
    assert "a multiple of 16" in errors["micro-batches"] and errors["fits"] is None


def test_a_batch_is_laid_out_in_order_over_all_devices(found):
    assert found["equal"] and found["pieces"] == [True] * 8


def test_one_device_takes_any_batch():
    if jax.device_count() > 1:
        pytest.skip("several devices")
    mesh = make_mesh()
    check_batch(mesh, 7)
    with pytest.raises(InputError, match=r"batch size 7 .* multiple of 2"):
        check_batch(mesh, 7, 2)


def test_eight_devices_train_as_one_does():
    """Split over the data and fsdp axes and over two micro-batches, three steps are those of one device."""
    found = eight_devices("""
        import optax
        from flax import nnx
        from vidjax.training.state import TrainState
        from vidjax.training.step import make_train_step

        def objective(model, batch, draws):
            noisy = batch["x"] + draws.uniforms[:, None] * draws.normal((256,))
            return jnp.square(model(noisy) - batch["x"]).mean(), {}

        optimizer = optax.adam(1e-2, eps=1e-3)
        batch = {"x": np.random.default_rng(0).normal(size=(16, 256)).astype(np.float32)}

        def train(mesh, accumulate):
            make = lambda: TrainState.create(nnx.Linear(256, 256, rngs=nnx.Rngs(0)), optimizer)
            layout = sharding.tree_sharding(mesh, jax.eval_shape(make))
            state = jax.jit(make, out_shardings=layout)()
            step = make_train_step(objective, optimizer, 0, accumulate=accumulate)
            step = jax.jit(step, donate_argnums=0, out_shardings=(layout, sharding.replicated(mesh)))
            losses = []
            for _ in range(3):
                state, metrics = step(state, sharding.put_batch(mesh, batch))
                losses.append(float(metrics["loss"]))
            return np.asarray(state.ema["kernel"]), losses, str(state.opt_state[0].mu["kernel"].sharding.spec)

        alone = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), sharding.AXES)
        one, losses, _ = train(alone, 1)
        many, same, spec = train(sharding.make_mesh(fsdp=2), 2)
        found = {"error": float(np.abs(many - one).max() / np.abs(one).max()), "losses": [losses, same], "spec": spec}
    """)
    assert found["error"] < 1e-5 and "fsdp" in found["spec"]
    one, many = found["losses"]
    assert many == pytest.approx(one, rel=1e-5)
