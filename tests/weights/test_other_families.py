"""An adapter of one family on a model of another is refused in one line, however many layers they share."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_folder import CONFIGS, I2VGEN, STABLE_VIDEO, VIDEO, write_configs

from vidjax.errors import InputError
from vidjax.models.keys import Keys
from vidjax.models.lora import lora_tensors, merge_loras
from vidjax.models.parameters import abstract_parameters
from vidjax.training.strategies import strategy
from vidjax.weights import pretrained

# Of each family's U-Net the blocks of two levels, the lower one without attention as in the real ones.
BLOCKS = {
    "2D": ("CrossAttnDownBlock2D", "DownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
    "3D": ("CrossAttnDownBlock3D", "DownBlock3D", "UpBlock3D", "CrossAttnUpBlock3D"),
    "SpatioTemporal": (
        "CrossAttnDownBlockSpatioTemporal",
        "DownBlockSpatioTemporal",
        "UpBlockSpatioTemporal",
        "CrossAttnUpBlockSpatioTemporal",
    ),
}
FAMILIES = {  # Stable Diffusion 1 reads narrower tokens than what came of the second one
    "sd": (CONFIGS, "2D", 24),
    "animatediff": (CONFIGS, "2D", 24),
    "modelscope": ({**CONFIGS, "unet": VIDEO}, "3D", 32),
    "i2vgen": (I2VGEN, "3D", 32),
    "svd": (STABLE_VIDEO, "SpatioTemporal", 32),
}
ALIKE = {("sd", "animatediff"), ("modelscope", "i2vgen"), ("i2vgen", "modelscope")}  # have the other's layers, or more


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models of shapes by family."""
    found = {}
    for name, (configs, kind, tokens) in FAMILIES.items():
        down, lower, upper, up = BLOCKS[kind]
        blocks = dict(down_block_types=[down, lower], up_block_types=[upper, up], block_out_channels=[64, 64])
        heads = {"num_attention_heads": [2, 2]} if kind == "SpatioTemporal" else {}
        changes = dict(unet=dict(blocks, cross_attention_dim=tokens, **heads), text_encoder=dict(hidden_size=tokens))
        changes["image_encoder"] = dict(projection_dim=tokens)
        made = {part: {**config, **changes.get(part, {})} for part, config in configs.items()}
        folder = write_configs(tmp_path_factory.mktemp(name) / "folder", made)
        adapter = "v1" if name == "animatediff" else None
        found[name] = pretrained.load(folder, weights=False, motion_adapter=adapter).model
    return found


def test_an_adapter_of_another_family_is_one_line(models):
    """On all attention, and of AnimateDiff that of the motion modules alone."""
    params = {
        name: {path: jnp.asarray(np.zeros(leaf.shape, "f")) for path, leaf in abstract_parameters(model).items()}
        for name, model in models.items()
    }
    adapters = {}
    for name, model in models.items():
        strategy("lora", rank=2).surgery(model, Keys(0))
        adapters[name] = lora_tensors(model)
    motion = {path: value for path, value in adapters["animatediff"].items() if "temporal" in path}
    asked = [(name, adapters[name], other) for name, other in itertools.permutations(FAMILIES, 2)]
    asked += [("animatediff", motion, other) for other in FAMILIES if other != "animatediff"]
    assert len(motion) > 10
    for name, tensors, other in asked:
        if (name, other) in ALIKE:
            merge_loras(params[other], {name: (tensors, 1.0)})
            continue
        with pytest.raises(InputError, match=rf"^LoRA '{name}' .*belongs to another model; leave it out$") as raised:
            merge_loras(params[other], {name: (tensors, 1.0)})
        assert "\n" not in str(raised.value)
