"""Functions are compiled with what the compiler knows, and without what it does not."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax import compiler


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.fixture
def forgotten():
    compiler.known.cache_clear()
    yield
    compiler.known.cache_clear()


X, KERNEL = (
    jnp.cos(jnp.arange(2 * 16 * 16 * 32.0)).reshape(2, 16, 16, 32),
    jnp.sin(jnp.arange(9216.0)).reshape(3, 3, 32, 32),
)


def own_convolutions(lowered):
    """How many of a program's convolutions the compiler did not give away."""
    return len(re.findall(r"= f32\S+ convolution\(", lowered.compile().as_text().split("ENTRY")[1]))


@pytest.mark.skipif(compiler.known() is None, reason="this compiler does not know the option")
def test_convolutions_are_the_compilers_own_and_the_same():
    ours, plain = compiler.jit(convolve), jax.jit(convolve)
    assert own_convolutions(ours.lower(X, KERNEL)) == 1
    np.testing.assert_allclose(ours(X, KERNEL), plain(X, KERNEL), rtol=1e-4, atol=1e-3)


def test_an_option_that_a_compiler_does_not_know_is_left_out(monkeypatch, forgotten):
    monkeypatch.setattr(compiler, "CPU", {"xla_cpu_option_of_another_year": "1"})
    assert compiler.known() is None
    np.testing.assert_allclose(compiler.jit(jnp.add)(1, 2), 3)
