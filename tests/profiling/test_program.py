"""What is read off a compiled program's text, against functions whose work is known."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from vidjax.profiling import chips
from vidjax.profiling.program import aliased, bytes_moved, collectives, cycles, kernels, products, times_run
from vidjax.runtime import sharding


def turning(x, steps):
    return jax.lax.scan(lambda x, _: (x @ x * 1e-3, None), x, None, length=steps)[0]


def nested(x):
    return turning(jax.lax.fori_loop(2, 9, lambda _, x: turning(x, 3), x), 5)


def on(name, *shape, dtype=jnp.bfloat16):
    """An argument on the first device of a topology."""
    found = chips.devices(name)
    if found is None:
        pytest.skip("the compiler is not installed: pip install vidjax[accelerators]")
    return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(found[0]))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    for variable, value in chips.QUIET.items():
        monkeypatch.setenv(variable, value)


def turns(text):
    """How often each loop's body runs."""
    runs = times_run(text)
    return sorted(runs[name] for name in re.findall(r"body=%([\w.-]+)", text))


def test_a_loop_turns_as_often_whether_the_compiler_notes_it_or_its_condition_says_so():
    text = jax.jit(nested).lower(jnp.ones((8, 8))).compile().as_text()
    bare = re.sub(r'"known_trip_count":\{"n":"\d+"\},?', "", text)
    assert bare != text and turns(bare) == turns(text) == [5, 7, 3 * 7]


def test_a_tpu_program_counts_what_a_loop_holds_as_often_as_it_turns():
    """Programs for TPUs note no numbers of turns."""
    x = on("v5e-1", 1024, 1024)
    spent = [sum(n for _, n in cycles(jax.jit(turning, static_argnums=1).lower(x, steps).compile().as_text(), 1))
        for steps in (10, 20)]  # fmt: skip
    assert spent[1] == pytest.approx(2 * spent[0], rel=0.05)
    peak = 20 * 2 * 1024**3 / chips.CHIPS["v5e"].flops  # seconds
    assert 1 < spent[1] / chips.CHIPS["v5e"].clock / peak < 3


def test_what_travels_beside_several_instructions_counts_once():
    """As the TPU compiler writes it: a gather in two fusions, another's start, and one in a loop of five turns."""
    gather = 'all-gather(%x), replica_groups={{{{0,1,2,3}}}}, frontend_attributes={{{{chain_id="{}"}}}}'
    text = f"""HloModule step

%first (x: bf16[2,8]) -> bf16[8,8] {{
  %x = bf16[2,8]{{1,0}} parameter(0)
  ROOT %a = bf16[8,8]{{1,0}} {gather.format(1)}
}}

%second (x: bf16[2,8]) -> bf16[8,8] {{
  %x = bf16[2,8]{{1,0}} parameter(0)
  ROOT %b = bf16[8,8]{{1,0}} {gather.format(1)}
}}

%turn (x: bf16[2,8]) -> bf16[8,8] {{
  %x = bf16[2,8]{{1,0}} parameter(0)
  ROOT %c = bf16[8,8]{{1,0}} {gather.format(2)}
}}

%until (x: bf16[2,8]) -> pred[] {{
  ROOT %x = bf16[2,8]{{1,0}} parameter(0)
}}

ENTRY %main (x: bf16[2,8]) -> bf16[8,8] {{
  %x = bf16[2,8]{{1,0}} parameter(0)
  %d = bf16[8,8]{{1,0}} fusion(%x), kind=kLoop, calls=%first
  %e = bf16[8,8]{{1,0}} fusion(%d), kind=kLoop, calls=%second
  %f = (bf16[2,8]{{1,0}}, bf16[8,8]{{1,0}}) {gather.format(3).replace("gather(", "gather-start(")}
  ROOT %g = bf16[8,8]{{1,0}} while(%e), condition=%until, body=%turn, backend_config={{"known_trip_count":{{"n":"5"}}}}
}}
"""
    received = 8 * 8 * 2 * 3 / 4  # bytes: all but a device's own quarter
    assert list(collectives(text)) == [("all-gather", pytest.approx(received))] * (1 + 5 + 1)


def test_a_reduce_scatter_of_a_tpu_sends_half_of_an_all_reduce():
    """Weights' gradients, of which each of four chips takes its quarter: three quarters leave each."""
    if (devices := chips.devices("v5e-4")) is None:
        pytest.skip("the compiler is not installed: pip install vidjax[accelerators]")
    mesh = sharding.make_mesh(1, 4, devices=devices)
    at = lambda *axes: NamedSharding(mesh, P(*axes))
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=at("fsdp"))
    gradient = lambda x, y: jax.lax.with_sharding_constraint(x.T @ y, at())
    step = jax.jit(gradient, out_shardings=at("fsdp"))
    text = step.lower(shape(4096, 512), shape(4096, 512)).compile().as_text()
    assert list(collectives(text)) == [("reduce-scatter", 512 * 512 * 2 * 3 / 4)]


@pytest.mark.parametrize("name", ["v4-2", "v5e-1", "v5p-2", "v6e-1", "tpu7x-1"])
def test_by_the_compilers_cycles_a_large_product_comes_close_to_each_chips_peak(name):
    x, chip = on(name, 8192, 8192), chips.named(name)[0]
    spent = sum(n for _, n in cycles(jax.jit(jnp.matmul).lower(x, x).compile().as_text(), chip.cells))
    assert 0.6 < 2 * 8192**3 / chip.flops / (spent / chip.clock) <= 1


@pytest.mark.parametrize("head_dim", [64, 128])
def test_flash_attention_counts_as_its_products(head_dim):
    """Forward two of queries x keys x 128, backward five; heads of 64 are padded to a matrix unit's width."""
    from vidjax.models.kernels.attention import splash

    q, k = on("v5e-1", 2, 1024, 2 * head_dim), on("v5e-1", 2, 512, 2 * head_dim)
    loss = lambda q, k, v: splash(q, k, v, head_dim).astype(jnp.float32).sum()
    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k).compile().as_text()
    spent = {each.kernel: n for each, n in cycles(text, 128**2) if each.kernel}
    one = 2 * 2 * 1024 * 512 / 128
    assert spent == {"splash_mha_fwd_residuals": 2 * one, "splash_mha_dkv_no_residuals": 5 * one}
    assert {name for name in kernels(text) if "splash" in name} == spent.keys()


def test_attention_within_short_sequences_counts_as_its_products():
    """Four sequences of 64 tokens, two heads of 192 that take 256; two sequences in one, so twice as many keys."""
    from vidjax.models.kernels.attention import short

    x = on("v5e-1", 4, 64, 384)
    loss = lambda q, k, v: jnp.square(short(q, k, v, 192).astype(jnp.float32)).sum()
    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile().as_text()
    spent = [n for each, n in cycles(text, 128**2) if each.kernel]
    one = 2 * 128 * 128 * 512 / 128**2
    assert sorted(spent) == [2 * one, 5 * one]


@pytest.mark.parametrize("name", ["v5e-1", "h100x1"])
def test_products_and_their_dtypes_and_who_gives_memory_away(name):
    half, full = on(name, 256, 256), on(name, 256, 256, dtype=jnp.float32)
    step = lambda a, b: ((a @ a).astype(jnp.float32) @ b.T + b, a.sum())
    compiled = jax.jit(step, donate_argnums=1).lower(half, full)
    text = compiled.compile(compiler_options=chips.COMPILER_OPTIONS[chips.named(name)[0].platform]).as_text()
    assert sorted("f32" in factors for _, factors in products(text)) == [False, True]
    assert aliased(text) == {1}
    assert sum(size for _, size in bytes_moved(text)) >= 2 * (256 * 256 * (2 + 4 + 4))
