"""What a GPU's program multiplies, read off its text, is what was traced; and loops take their turns' time."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from vidjax.models.kernels.attention import cudnn
from vidjax.models.kernels.convolution import convolve
from vidjax.profiling import chips, gpu
from vidjax.profiling.flops import count_flops

CHIP = chips.CHIPS["h100"]


def on(*shape, dtype=jnp.bfloat16):
    """An argument on a GPU."""
    found = chips.devices("h100x1")
    if found is None:
        pytest.skip("the compiler is not installed: pip install vidjax[accelerators]")
    return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(found[0]))


def compiled(function, *given):
    return jax.jit(function).lower(*given).compile(chips.COMPILER_OPTIONS["gpu"]).as_text()


def counted(text):
    return sum(count for _, _, count in gpu.multiplications(text))


def square(y):
    return jnp.square(y.astype(jnp.float32)).sum()


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x, k: convolve(x, k, 2, [(0, 1), (0, 1)], implementation="plain"), [(4, 32, 32, 64), (3, 3, 64, 128)]),
        (lambda x, k: convolve(x, k, implementation="stacked"), [(2, 4, 32, 32, 64), (3, 3, 3, 64, 128)]),
        (lambda x, w: x @ w, [(512, 256), (256, 384)]),
        (lambda x, w: jnp.einsum("bnc,bmc->bnm", x, w), [(8, 256, 64), (8, 128, 64)]),
    ],
)
def test_products_are_those_that_were_traced(function, shapes):
    x, w = (on(*shape) for shape in shapes)
    for each in (function, jax.grad(lambda x, w: square(function(x, w)), (0, 1))):
        assert counted(compiled(each, x, w)) == pytest.approx(count_flops(each, x, w), rel=1e-6)


@pytest.mark.parametrize(("width", "multiplied"), [(64, 64), (40, 64), (80, 128)])
def test_flash_attention_multiplies_twice_and_five_times_in_heads_that_are_filled_up(width, multiplied):
    b, n, m, heads = 2, 256, 512, 4
    q, k = on(b, n, heads * width), on(b, m, heads * width)
    text = compiled(jax.value_and_grad(lambda q, k: square(cudnn(q, k, k, width)), (0, 1)), q, k)
    one = 2 * b * heads * n * m * multiplied
    assert sorted(count for _, kind, count in gpu.multiplications(text) if "flash" in kind) == [2 * one, 5 * one]


def test_factors_of_fp32_take_twice_as_long():
    half, full = (compiled(jnp.matmul, *[on(512, 512, dtype=dtype)] * 2) for dtype in (jnp.bfloat16, jnp.float32))
    assert counted(full) == 2 * counted(half) > 0


def test_what_a_sum_does_with_two_numbers_is_no_kernel():
    rows = gpu.spent(compiled(lambda x: jnp.sort(x).sum(), on(512, 512)), CHIP)
    assert len({each.computation for each, *_ in rows}) == 1


def test_a_loop_takes_as_long_as_its_turns():
    turning = lambda x, steps: jax.lax.scan(lambda x, _: (x @ x * 1e-3, None), x, None, length=steps)[0]
    ten, twenty = (
        sum(seconds for _, seconds, _ in gpu.spent(compiled(lambda x, n=n: turning(x, n), on(2048, 2048)), CHIP))
        for n in (10, 20)
    )
    assert twenty == pytest.approx(2 * ten, rel=0.1)
    assert 1 < ten / (10 * 2 * 2048**3 / CHIP.flops) < 4
