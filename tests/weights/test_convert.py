"""Fitting a checkpoint to a model, on literal trees, errors included."""

import jax
import numpy as np
import pytest
from flax import nnx

from vidjax.errors import InputError
from vidjax.models.keys import OneKey
from vidjax.models.unet import UNet, UNetConfig
from vidjax.weights.convert import fit, load, parameters, rename, to_jax
from vidjax.weights.diffusers import MODELSCOPE, TUNE_A_VIDEO, unet

SHAPES = {"a.kernel": (2, 3), "a.bias": (3,), "norm.scale": (2,)}
TENSORS = {"first.weight": np.arange(6.0).reshape(3, 2), "first.bias": np.arange(3.0), "norm.weight": np.ones(2)}
RULES = [("^first", "a")]


def test_fit():
    out = fit(SHAPES, TENSORS | {"ema.step": np.zeros(())}, RULES, ignore="^ema")
    assert out.keys() == SHAPES.keys()
    np.testing.assert_array_equal(out["a.kernel"], [[0, 2, 4], [1, 3, 5]])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"a.bias": np.zeros(3)}, "a.bias and first.bias both stand for a.bias"),
        ({"other": np.zeros(3)}, "no parameter for key other"),
        ({"norm.weight": None}, "no key for parameter norm.scale"),
        ({"first.bias": np.zeros(4)}, r"first.bias has shape \(4,\), parameter a.bias \(3,\)"),
    ],
)
def test_what_does_not_fit_is_listed(change, message):
    tensors = {key: value for key, value in (TENSORS | change).items() if value is not None}
    with pytest.raises(InputError, match=message):
        fit(SHAPES, tensors, RULES)


def test_pointwise_and_flat_kernels_lose_their_ones():
    kernel = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(to_jax(kernel[:, :, None, None], (2, 3)), kernel.T)
    assert to_jax(np.zeros((5, 4, 1, 3, 3)), (3, 3, 4, 5)).shape == (3, 3, 4, 5)


@pytest.mark.parametrize(
    "rules, key, path",
    [
        ([], "down_blocks.1.resnets.0.conv1.weight", "down.3.resnet.conv1.weight"),
        ([], "up_blocks.0.upsamplers.0.conv.bias", "up.2.upsample.conv.bias"),
        ([], "mid_block.resnets.1.norm1.weight", "mid.1.resnet.norm1.weight"),
        (
            [],
            "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.bias",
            "mid.0.attention.blocks.0.attn2.to_out.bias",
        ),
        (
            TUNE_A_VIDEO,
            "down_blocks.0.attentions.1.transformer_blocks.0.norm_temp.bias",
            "down.1.attention.blocks.0.attn_temp.norm.bias",
        ),
        (MODELSCOPE, "up_blocks.1.temp_convs.2.conv4.3.weight", "up.5.temporal_resnet.conv4.weight"),
    ],
)
def test_names_of_diffusers(rules, key, path):
    assert rename(key, [*rules, *unet(2)]) == path


def test_an_abstract_model_is_filled():
    config = UNetConfig(channels=(4,), attention_levels=False, blocks_per_level=1, groups=2, heads=2, tokens_dim=3)
    model = nnx.eval_shape(lambda: UNet(config, rngs=OneKey()))
    theirs = {path.replace(".scale", ".weight"): leaf for path, leaf in parameters(model).items()}
    tensors = {
        path.replace(".kernel", ".weight"): np.zeros(
            leaf.shape if leaf.ndim == 1 else leaf.shape[::-1] if leaf.ndim == 2 else (*leaf.shape[:1:-1], 3, 3)
        )
        for path, leaf in theirs.items()
    }
    load(model, tensors, [])
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
