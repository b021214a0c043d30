"""Low-rank adapters: the base at the start, one answer merged or not, sums of several, errors that name the path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vidjax.errors import InputError
from vidjax.models.lora import LoRALinear, add_lora, lora_tensors, merge_loras
from vidjax.models.parameters import merge, parameters
from vidjax.models.unet import UNet, UNetConfig

TINY = dict(channels=(8,), blocks_per_level=1, attention_levels=True, groups=4, heads=2, tokens_dim=6, block="tuned")
ATTENTION = r"\.to_(q|k|v|out)$"
KEYS = jax.random.split(jax.random.key(0), 4)
X, TOKENS = jax.random.normal(KEYS[0], (1, 3, 4, 4, 4)), jax.random.normal(KEYS[1], (1, 5, 6))
T = jnp.full((1, 3), 300.0)
answer = jax.jit(lambda model: model(X, T, TOKENS))


def unet():
    """With no weight at zero: a zero convolution at the end would hide everything."""
    model = UNet(UNetConfig(**TINY), rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    noisy = {k: v + jnp.asarray(0.2 * random.standard_normal(v.shape, "f")) for k, v in parameters(model).items()}
    return merge(nnx.graphdef(model), noisy)


def random_tensors(model, seed, alpha=3.0):
    random = np.random.default_rng(seed)
    draw = lambda v: alpha if isinstance(v, float) else jnp.asarray(0.3 * random.standard_normal(v.shape, "f"))
    return {key: draw(value) for key, value in lora_tensors(model).items()}


def test_starts_as_the_base_bit_for_bit_and_keeps_its_paths():
    base, adapted = unet(), unet()
    layers = add_lora(adapted, ATTENTION, rank=2, rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(answer(adapted), answer(base))
    before, after = parameters(base), parameters(adapted)
    assert after.keys() - before.keys() == {f"{layer}.{end}" for layer in layers for end in ("lora_down", "lora_up")}
    assert all(np.array_equal(after[path], value) for path, value in before.items())
    assert len(layers) == 4 * 3 * 4  # stages with attention: one down, one mid, two up; three attentions in each


def test_the_formula():
    base = nnx.Linear(5, 4, rngs=nnx.Rngs(0))
    layer = LoRALinear(base, rank=2, alpha=6.0, rngs=nnx.Rngs(1))
    layer.lora_up[...] = jax.random.normal(KEYS[2], (2, 4))
    x = jax.random.normal(KEYS[3], (3, 5))
    w = np.float64(base.kernel[...]) + 6.0 / 2 * np.float64(layer.lora_down[...]) @ np.float64(layer.lora_up[...])
    np.testing.assert_allclose(layer(x), np.float64(x) @ w + np.float64(base.bias[...]), atol=1e-6)


def test_merged_equals_unmerged():
    base, adapted = unet(), unet()
    add_lora(adapted, ATTENTION, rank=2, alpha=3.0, rngs=nnx.Rngs(1))
    tensors = random_tensors(adapted, seed=1)
    learned = {path: tensors.get(path, value) for path, value in parameters(adapted).items()}
    adapted = merge(nnx.graphdef(adapted), learned)
    merged = merge(nnx.graphdef(base), merge_loras(parameters(base), {"own": (lora_tensors(adapted), 1.0)}))
    expected, start = answer(adapted), answer(base)
    assert np.linalg.norm(expected - start) > 0.05 * np.linalg.norm(start)
    assert np.linalg.norm(answer(merged) - expected) < 2e-6 * np.linalg.norm(expected)


def test_several_add_up_by_weight():
    model = unet()
    params = parameters(model)
    add_lora(model, r"attn1\.to_q$", rank=2, rngs=nnx.Rngs(1))
    one, two = random_tensors(model, 1, alpha=2.0), random_tensors(model, 2, alpha=5.0)
    both = merge_loras(params, {"one": (one, 0.5), "two": (two, -2.0)})
    for path, value in params.items():
        expected = np.float64(value)
        if path.endswith("attn1.to_q.kernel"):
            pair = lambda lora, path=path: (
                np.float64(lora[path[:-6] + "lora_down"]) @ np.float64(lora[path[:-6] + "lora_up"])
            )
            expected = expected + 0.5 * 2 / 2 * pair(one) - 2.0 * 5 / 2 * pair(two)
        np.testing.assert_allclose(both[path], expected, atol=1e-6)
    back = merge_loras(both, {"one": (one, -0.5), "two": (two, 2.0)})
    np.testing.assert_allclose(*(np.concatenate([np.ravel(p[k]) for k in params]) for p in (back, params)), atol=2e-6)


def test_targets_that_find_nothing_are_an_error_with_examples():
    with pytest.raises(InputError, match=r"'to_query' find none of \d+ linear layers, such as down\.0\..*to_q"):
        add_lora(unet(), "to_query", rank=2, rngs=nnx.Rngs(1))
    with pytest.raises(InputError, match=r"rank=9 does not fit a \d+ x 8 layer; take 1 to"):
        add_lora(unet(), "attn2.to_k", rank=9, rngs=nnx.Rngs(1))


def test_a_lora_of_another_model_is_an_error_with_path_and_shapes():
    params = {"a.to_q.kernel": jnp.ones((4, 6))}
    pair = lambda layer, cin, cout: {f"{layer}.lora_down": jnp.ones((cin, 2)), f"{layer}.lora_up": jnp.ones((2, cout))}
    with pytest.raises(InputError, match=r"LoRA 'cat' has b\.to_q, the model has no b\.to_q\.kernel"):
        merge_loras(params, {"cat": (pair("b.to_q", 4, 6), 1.0)})
    with pytest.raises(InputError, match=r"'cat' is \(5, 2\) x \(2, 6\) at a\.to_q, the model's .*\(4, 6\)"):
        merge_loras(params, {"cat": (pair("a.to_q", 5, 6), 1.0)})
    with pytest.raises(InputError, match=r"lacks a\.to_q\.lora_up"):
        merge_loras(params, {"cat": ({"a.to_q.lora_down": jnp.ones((4, 2))}, 1.0)})
    with pytest.raises(InputError, match=r"has a\.to_q\.kernel; its keys end in"):
        merge_loras(params, {"cat": (params, 1.0)})
