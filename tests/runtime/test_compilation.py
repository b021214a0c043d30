"""What compiling is said to cost: each program counts once, and one that a cache holds counts as read."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from vidjax.runtime.compilation import so_far


@pytest.fixture
def cache(tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_a_program_is_compiled_once_then_at_hand_then_read(cache):
    x = jnp.arange(7.0)
    program = lambda: jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))
    counts = []
    for run in [program()] * 2 + [program()]:
        if len(counts) == 2:
            jax.clear_caches()
        before = so_far()
        run(x).block_until_ready()
        now = so_far() - before
        counts.append((now.programs, now.cached))
        assert (now.seconds > 0) == (now.programs > 0)
    assert counts == [(1, 0), (0, 0), (1, 1)]
