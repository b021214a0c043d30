"""Stable Diffusion's U-Nets at their full size against diffusers' own, random weights in every parameter."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from vidjax.models.keys import OneKey  # noqa: E402
from vidjax.models.unet import UNet  # noqa: E402
from vidjax.weights.configs import unet_config  # noqa: E402
from vidjax.weights.convert import load  # noqa: E402
from vidjax.weights.diffusers import unet  # noqa: E402

SIZES = {  # what differs from diffusers' defaults, which are Stable Diffusion 1.5's
    "1.5": dict(cross_attention_dim=768),
    "2.1": dict(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
}


def random_unet(**options):
    """Made on no device first: its own initialisation takes longer than the test."""
    with torch.device("meta"):
        reference = diffusers.UNet2DConditionModel(**options)
    reference = reference.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, p in reference.named_parameters():
        scale = 0.1 if p.ndim == 1 else p[0].numel() ** -0.5
        p.normal_(1.0 if p.ndim == 1 and name.endswith("weight") else 0.0, scale, generator=generator)
    return reference


@pytest.mark.parametrize("size", SIZES)
def test_equals_diffusers(size):
    """A map of 16x16 goes down to 2x2: all routes through the convolution, keys of 256 tokens and a full caption."""
    reference = random_unet(**SIZES[size])
    random = np.random.default_rng(0)
    x = random.standard_normal((1, 16, 16, 4), dtype=np.float32)
    tokens = random.standard_normal((1, 77, SIZES[size]["cross_attention_dim"]), dtype=np.float32)
    with torch.no_grad():
        out = reference(torch.from_numpy(x).permute(0, 3, 1, 2), torch.tensor([501]), torch.from_numpy(tokens)).sample
    expected = out.permute(0, 2, 3, 1).numpy()
    config, rules = unet_config(json.loads(reference.to_json_string()))
    model = nnx.eval_shape(lambda: UNet(config, rngs=OneKey()))
    load(model, {key: value.numpy() for key, value in reference.state_dict().items()}, [*rules, *unet(2)])
    del reference
    graph, params = nnx.split(model)
    forward = jax.jit(lambda params, x, t, tokens: nnx.merge(graph, params)(x, t, tokens))
    got = forward(params, x[:, None], np.full((1, 1), 501), tokens)[:, 0]
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert error <= 1e-4
    print(size, error)
