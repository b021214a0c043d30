"""A profile's figures against hand counts, and its times against the clock they come from."""

import time
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vidjax.errors import InputError
from vidjax.profiling.flops import count_flops, flops_by_scope
from vidjax.profiling.layers import REST, layer_names, layer_of, layers, named, read_trace, shared_time, table
from vidjax.profiling.program import read_program

ROWS, WIDE, NARROW = 64, 256, 32


class Two(nnx.Module):
    def __init__(self, rngs):
        self.inside = nnx.List([nnx.Linear(WIDE, WIDE, rngs=rngs)])
        self.out = nnx.Linear(WIDE, NARROW, rngs=rngs)

    def __call__(self, x):
        hidden = jax.checkpoint(lambda x: jnp.tanh(self.inside[0](x)))
        return self.out(hidden(x))


def objective(model, x):
    return jnp.square(model(x)).sum()


@pytest.fixture(scope="module")
def gradient():
    """(the objective's gradient by the state, its arguments, the paths of layers)."""
    graphdef, state = nnx.split(Two(nnx.Rngs(0)))
    loss = lambda state, x: named(objective)(nnx.merge(graphdef, state), x)
    paths = [path for path, _ in layers(nnx.merge(graphdef, state))]
    return jax.grad(loss), (state, jnp.ones((ROWS, WIDE))), paths


def test_flops_go_to_the_layer_that_does_them(gradient):
    grad, args, paths = gradient
    scopes = flops_by_scope(grad, *args)
    assert sum(scopes.values()) == count_flops(grad, *args)
    found = dict.fromkeys(["inside.0", "out", REST], 0.0)
    for scope, flops in scopes.items():
        found[layer_of(scope, paths, 2)] += flops
    once = 2 * ROWS * WIDE
    # Forward, again for the backward pass, and the gradient of the kernel; the input wants none.
    assert found == {"inside.0": 3 * once * WIDE, "out": 3 * once * NARROW, REST: 0.0}


def test_names_change_no_numbers_and_are_gone_afterwards():
    model, x = Two(nnx.Rngs(0)), jnp.ones((ROWS, WIDE))
    before = nnx.Linear.__call__, Two.__call__
    np.testing.assert_array_equal(named(objective)(model, x), objective(model, x))
    with pytest.raises(ZeroDivisionError), layer_names(model):
        assert nnx.Linear.__call__ is not before[0]
        _ = 1 / 0
    assert (nnx.Linear.__call__, Two.__call__) == before


def test_the_innermost_layer_counts_cut_to_the_depth():
    paths = ["unet", "unet.down.0", "unet.down.0.resnet"]
    scope = "jit(step)/transpose(jvp(unet))/unet.down.0/checkpoint/unet.down.0.resnet/while/body/dot_general"
    assert [layer_of(scope, paths, depth) for depth in (1, 2, 4)] == ["unet", "unet.down", "unet.down.0.resnet"]
    assert layer_of("jit(step)/mul", paths, 2) == REST


def test_bytes_of_a_product_are_those_of_its_factors_and_of_itself():
    a, b = jnp.ones((ROWS, WIDE)), jnp.ones((WIDE, NARROW), jnp.bfloat16)
    compiled = jax.jit(lambda a, b: jax.lax.optimization_barrier(a @ b.astype(jnp.float32))).lower(a, b).compile()
    sizes = [size for _, size in read_program(compiled.as_text()).values()]
    assert 4 * (ROWS * WIDE + WIDE * NARROW + ROWS * NARROW) in sizes  # the product
    assert 2 * WIDE * NARROW + 4 * WIDE * NARROW in sizes  # the widening of b


def test_what_runs_at_once_shares_the_time():
    spans = [("a", 0.0, 2.0), ("b", 1.0, 3.0), ("a", 5.0, 6.0), ("a", 5.0, 6.0)]
    assert shared_time(spans) == {"a": 1.5 + 1.0, "b": 1.5}


def test_a_trace_finds_every_layer(gradient, tmp_path):
    grad, args, paths = gradient
    compiled = jax.jit(grad).lower(*args).compile()
    for _ in range(2):  # into one folder: only the last trace counts
        with jax.profiler.trace(str(tmp_path)):
            for _ in range(2):
                jax.block_until_ready(compiled(*args))
        time.sleep(1)  # a trace's folder is called by the second
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 2
    spans = read_trace(tmp_path)
    assert set(Counter(name for name, *_ in spans).values()) == {2}
    rows = table(flops_by_scope(grad, *args), compiled.as_text(), spans, 2, paths, 2)
    assert set(rows) >= {"inside.0", "out"} and all(rows[layer]["ms"] > 0 for layer in ("inside.0", "out"))
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    assert rows["inside.0"]["gb"] * 1e9 >= 4 * (ROWS * WIDE + WIDE * WIDE)  # its input and kernel at least once
    lasted = max(end for _, _, end in spans) - min(start for _, start, _ in spans)
    assert sum(row["ms"] for row in rows.values()) <= lasted * 1e3 / 2


def test_a_trace_without_devices_is_refused(tmp_path):
    with pytest.raises(InputError, match="shows no operation"):
        read_trace(tmp_path)
