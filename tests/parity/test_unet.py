"""The U-Net against diffusers' own and its gradients, random weights in every parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from parity.gradients import check_gradients  # noqa: E402

from vidjax.models.keys import OneKey  # noqa: E402
from vidjax.models.unet import Temporal, UNet, UNetConfig  # noqa: E402
from vidjax.weights import convert  # noqa: E402
from vidjax.weights.diffusers import MODELSCOPE, unet  # noqa: E402

DOWN, UP = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
SMALL = dict(block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=24, norm_num_groups=8)
OURS = dict(channels=(32, 64), blocks_per_level=1, attention_levels=(True, False), tokens_dim=24, groups=8)
VIDEO_DOWN, VIDEO_UP = ("CrossAttnDownBlock3D", "DownBlock3D"), ("UpBlock3D", "CrossAttnUpBlock3D")
FAMILIES = {  # AnimateDiff's is in test_animatediff.py
    # `attention_head_dim` of the 2-D class is the number of heads, that of the 3-D class the features of one.
    "stable_diffusion_1": (
        "UNet2DConditionModel",
        dict(SMALL, down_block_types=DOWN, up_block_types=UP, attention_head_dim=4),
        dict(OURS, heads=4),
        [],
    ),
    "stable_diffusion_2": (
        "UNet2DConditionModel",
        dict(SMALL, down_block_types=DOWN, up_block_types=UP, attention_head_dim=(2, 4), use_linear_projection=True),
        dict(OURS, heads=(2, 4)),
        [],
    ),
    "modelscope": (
        "UNet3DConditionModel",
        dict(SMALL, down_block_types=VIDEO_DOWN, up_block_types=VIDEO_UP, attention_head_dim=8),
        dict(
            OURS, heads=(4, 8), after_resnet="convs", after_attention=Temporal((4, 8), (True, False)), stem_heads=(8, 8)
        ),
        MODELSCOPE,
    ),
}


def refill(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            is_scale = p.ndim == 1 and name.endswith("weight")
            p.copy_(1 + 0.2 * noise if is_scale else noise * (0.1 if p.ndim == 1 else p[0].numel() ** -0.5))
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_diffusers(family):
    """On maps whose sizes no power of two divides: the output, and of every parameter and the input the gradient."""
    kind, theirs, ours, rules = FAMILIES[family]
    image = kind == "UNet2DConditionModel"
    reference, config = refill(getattr(diffusers, kind)(**theirs)), UNetConfig(**ours)
    rules = [*rules, *unet(config.blocks_per_level)]
    model = nnx.eval_shape(lambda: UNet(config, rngs=OneKey()))
    convert.load(model, {key: value.numpy() for key, value in reference.state_dict().items()}, rules)

    random, frames = np.random.default_rng(0), 1 if image else 3
    x, weight = (random.standard_normal((2, frames, 7, 5, 4), dtype=np.float32) for _ in range(2))
    tokens, t = random.standard_normal((2, 5, 24), dtype=np.float32), np.array([3, 741])
    to_torch = lambda a: torch.from_numpy(np.moveaxis(a[:, 0] if image else a, -1, 1).copy())
    to_jax = lambda a: np.moveaxis(a[:, :, None] if image else a, 1, -1)
    video = to_torch(x).requires_grad_()
    out = reference(video, torch.from_numpy(t), torch.from_numpy(tokens)).sample
    (out * to_torch(weight)).sum().backward()
    graph, state = nnx.split(model)

    def loss(state, x):
        got = nnx.merge(graph, state)(x, jnp.broadcast_to(t[:, None], (2, frames)), jnp.asarray(tokens))
        return (got * weight).sum(), got

    (_, got), (grads, into) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(state, jnp.asarray(x))
    off = lambda got, expected: np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert off(got, to_jax(out.detach().numpy())) <= 1e-5
    assert off(into, to_jax(video.grad.numpy())) <= 1e-4
    grads = {".".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(grads)}
    expected = {key: value.grad.numpy() for key, value in reference.named_parameters()}
    expected = convert.fit({path: value.shape for path, value in grads.items()}, expected, rules)
    check_gradients(grads, expected)
