"""Every parameter's way to diffusers' key and back, against the keys and shapes of the reference classes."""

import json
import re

import jax
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from vidjax.models.autoencoder import Autoencoder  # noqa: E402
from vidjax.models.clip import ClipText, ClipTextConfig  # noqa: E402
from vidjax.models.keys import OneKey  # noqa: E402
from vidjax.models.unet import UNet  # noqa: E402
from vidjax.weights import clip, configs  # noqa: E402
from vidjax.weights.convert import fit, parameters, rename, unfit  # noqa: E402
from vidjax.weights.diffusers import MODELSCOPE_KEYS, TUNE_A_VIDEO_KEYS, unet, unet_keys  # noqa: E402
from vidjax.weights.diffusers_autoencoder import AUTOENCODER_KEYS, DIFFUSERS_AUTOENCODER  # noqa: E402
from vidjax.weights.pretrained import inflate_config  # noqa: E402

SMALL = dict(block_out_channels=(16, 32), layers_per_block=2, cross_attention_dim=24, norm_num_groups=8)
IMAGE = dict(
    SMALL,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    attention_head_dim=4,
)
VIDEO = dict(
    SMALL,
    down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
    up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    attention_head_dim=8,
)


def written(reference):
    """The config as it stands in config.json."""
    return json.loads(json.dumps({**reference.config, "_class_name": type(reference).__name__}))


def shapes(reference):
    return {key: tuple(value.shape) for key, value in reference.state_dict().items()}


def there_and_back(make, rules, keys, pointwise, expected):
    """`make()` has a parameter for each of the `expected` keys, of its shape; the rules undo each other."""
    model = nnx.eval_shape(make)
    leaves = parameters(model)
    zeros = {path: np.zeros(leaf.shape, np.uint8) for path, leaf in leaves.items()}
    tensors = unfit(zeros, keys, pointwise)
    assert {key: value.shape for key, value in tensors.items()} == expected
    back = fit({path: leaf.shape for path, leaf in leaves.items()}, tensors, rules)
    assert back.keys() == leaves.keys()
    for path in leaves:
        (key,) = unfit({path: zeros[path]}, keys, pointwise)
        assert rename(key, rules) == re.sub(r"\.(kernel|scale|embedding)$", ".weight", path)


def tune_a_video(image):
    """What showlab's class adds to each transformer block: attention without biases but at its end, and its norm."""
    out = shapes(image)
    for key, shape in list(out.items()):
        if m := re.match(r"(.*transformer_blocks\.0\.)norm1\.weight$", key):
            out |= {f"{m[1]}norm_temp.{kind}": shape for kind in ("weight", "bias")}
            out |= {f"{m[1]}attn_temp.{to}.weight": shape * 2 for to in ("to_q", "to_k", "to_v", "to_out.0")}
            out[f"{m[1]}attn_temp.to_out.0.bias"] = shape
    return out


@pytest.mark.parametrize("family", ["sd1", "sd2", "tune_a_video", "modelscope"])
def test_unets(family):
    if family == "modelscope":
        reference = diffusers.UNet3DConditionModel(**VIDEO)
    else:
        reference = diffusers.UNet2DConditionModel(**IMAGE, use_linear_projection=family == "sd2")
    config, expected = written(reference), shapes(reference)
    if family == "tune_a_video":
        config, expected = inflate_config(config), tune_a_video(reference)
    ours, rules = configs.unet_config(config)
    linear = family in ("sd2", "modelscope")
    pointwise = r"conv_shortcut\.weight$" if linear else r"(conv_shortcut|attentions\.\d+\.proj_(in|out))\.weight$"
    keys = [*unet_keys(2), *TUNE_A_VIDEO_KEYS, *MODELSCOPE_KEYS]
    there_and_back(lambda: UNet(ours, rngs=nnx.Rngs(0)), [*rules, *unet(2)], keys, pointwise, expected)


def test_autoencoder():
    reference = diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        norm_num_groups=4,
    )
    config, _ = configs.autoencoder_config(written(reference))
    make = lambda: Autoencoder(config, rngs=nnx.Rngs(0))
    pointwise = r"(conv_shortcut|quant_conv)\.weight$"
    there_and_back(make, DIFFUSERS_AUTOENCODER, AUTOENCODER_KEYS, pointwise, shapes(reference))


def test_text():
    size = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2)
    reference = transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(**size, vocab_size=20, max_position_embeddings=5, projection_dim=6)
    )
    config = configs.clip_text_config({**reference.config.to_dict(), "architectures": ["CLIPTextModelWithProjection"]})
    assert config == ClipTextConfig(dim=8, hidden=12, layers=2, heads=2, projection=6, vocabulary=20, length=5)
    make = lambda: ClipText(config, rngs=nnx.Rngs(0))
    there_and_back(make, clip.TEXT, clip.TEXT_KEYS, r"$^", shapes(reference))


def test_at_full_size():
    """Stable Diffusion's 1.5 and 2.1 and ModelScope, abstractly: every key used once, every parameter filled."""
    second = dict(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
    for kind, options, count in (
        (diffusers.UNet2DConditionModel, dict(cross_attention_dim=768), 859_520_964),
        (diffusers.UNet2DConditionModel, second, 865_910_724),
        (diffusers.UNet3DConditionModel, {}, 1_411_233_860),
    ):
        with torch.device("meta"):
            reference = kind(**options)
        config, rules = configs.unet_config(written(reference))
        model = nnx.eval_shape(lambda config=config: UNet(config, rngs=OneKey()))
        leaves = {path: leaf.shape for path, leaf in parameters(model).items()}
        tensors = {key: np.broadcast_to(np.uint8(0), shape) for key, shape in shapes(reference).items()}
        assert fit(leaves, tensors, [*rules, *unet(2)]).keys() == leaves.keys()
        assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == count
