"""The U-Net against diffusers' own, random weights in every parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from vidjax.models.keys import OneKey  # noqa: E402
from vidjax.models.unet import Temporal, UNet, UNetConfig  # noqa: E402
from vidjax.weights.convert import load  # noqa: E402
from vidjax.weights.diffusers import ANIMATEDIFF, MODELSCOPE, unet  # noqa: E402

DOWN, UP = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
SMALL = dict(block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=24, norm_num_groups=8)
OURS = dict(channels=(32, 64), blocks_per_level=1, attention_levels=(True, False), tokens_dim=24, groups=8)
VIDEO_DOWN, VIDEO_UP = ("CrossAttnDownBlock3D", "DownBlock3D"), ("UpBlock3D", "CrossAttnUpBlock3D")
MOTION = dict(
    down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
    up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
    num_attention_heads=2,
    motion_num_attention_heads=2,
    motion_max_seq_length=8,
)
FAMILIES = {
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
    "animatediff": (
        "UNetMotionModel",
        dict(SMALL, **MOTION),
        dict(OURS, heads=2, after_attention=dict(heads=[2, 2], levels=[True, True], positions=True)),
        ANIMATEDIFF,
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
    kind, theirs, ours, rules = FAMILIES[family]
    image = kind == "UNet2DConditionModel"
    reference = refill(getattr(diffusers, kind)(**theirs))
    config = UNetConfig(**ours)
    model = nnx.eval_shape(lambda: UNet(config, rngs=OneKey()))
    tensors = {key: value.numpy() for key, value in reference.state_dict().items()}
    load(model, tensors, [*rules, *unet(config.blocks_per_level)], ignore=r"pos_embed\.pe$")
    graph, params = nnx.split(model)
    forward = jax.jit(lambda x, t, tokens: nnx.merge(graph, params)(x, t, tokens))

    random = np.random.default_rng(0)
    frames = 1 if image else 3
    # The odd map is one of sizes that no power of two divides.
    for size in [(8, 12), (7, 5)] if family == "stable_diffusion_1" else [(7, 5)] if image else [(4, 6)]:
        x = random.standard_normal((2, frames, *size, 4), dtype=np.float32)
        tokens = random.standard_normal((2, 5, 24), dtype=np.float32)
        t = np.array([3, 741])
        video = torch.from_numpy(np.moveaxis(x, -1, 1))  # [b, c, t, h, w]
        context = torch.from_numpy(tokens)
        if family == "animatediff":
            context = context.repeat_interleave(frames, 0)
        with torch.no_grad():
            out = reference(video[:, :, 0] if image else video, torch.from_numpy(t), context).sample.numpy()
        expected = np.moveaxis(out[:, :, None] if image else out, 1, -1)
        got = forward(jnp.asarray(x), jnp.broadcast_to(t[:, None], (2, frames)), jnp.asarray(tokens))
        assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)
        print(family, size, np.linalg.norm(got - expected) / np.linalg.norm(expected))
