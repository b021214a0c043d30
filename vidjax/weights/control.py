"""Networks that steer a Stable Diffusion by pictures, as folders of diffusers: ControlNetModel, and the
SparseControlNetModel of AnimateDiff's SparseCtrl, whose pictures are latents or pixels of some frames."""

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from vidjax.errors import InputError
from vidjax.models.control import ControlConfig, ControlEmbedder, ControlNet
from vidjax.models.parameters import parameters
from vidjax.models.unet import Temporal, UNetConfig
from vidjax.settings import choose
from vidjax.weights import animatediff, convert
from vidjax.weights.configs import expect, require, unet_config
from vidjax.weights.convert import Rules
from vidjax.weights.diffusers import ANIMATEDIFF, ANIMATEDIFF_KEYS, rename_blocks, unet, unet_keys
from vidjax.weights.folder import read_json, read_weights

SPARSE = {"ControlNetModel": False, "SparseControlNetModel": True}
WANTED = f"name a folder of diffusers' {' or '.join(SPARSE)}"
KNOWN = {
    "controlnet_conditioning_channel_order": ("rgb",),
    "global_pool_conditions": (False,),
    "concat_conditioning_mask": (True,),
    "temporal_transformer_layers_per_block": (1,),
    "transformer_layers_per_mid_block": (None, 1),
}
RULES: Rules = [
    (r"^controlnet_cond_embedding\.", "hint."),
    (r"^controlnet_down_blocks\.", "zeros."),
    (r"^controlnet_mid_block\.", "zero_mid."),
]
KEYS: Rules = [  # after those of `unet_keys`
    (r"^hint\.(transformer_)?", "controlnet_cond_embedding."),
    (r"^zeros\.", "controlnet_down_blocks."),
    (r"^zero_mid\.", "controlnet_mid_block."),
]


@dataclasses.dataclass(frozen=True)
class Control:
    """A network in a folder: its configs here, and its tensors under diffusers' keys."""

    path: Path
    unet: UNetConfig
    control: ControlConfig
    tensors: Mapping[str, np.ndarray]
    linear: bool  # whether projections of transformers are linear layers in the file

    def check(self, base: UNetConfig) -> None:
        """Raises InputError unless it is for a U-Net like `base`."""
        for name in ("in_channels", "channels", "blocks_per_level", "attention_levels", "tokens_dim"):
            own, there = getattr(self.unet, name), getattr(base, name)
            if own != there:
                raise InputError(f"{self.path} is for a U-Net with {name}={own}, this one has {there}: take another")

    def embedder(self, rngs: nnx.Rngs) -> ControlEmbedder:
        """Makes the condition, with random parameters."""
        return ControlEmbedder(ControlNet(self.unet, self.control, rngs=rngs))

    def load(self, network: nnx.Module, dtype: DTypeLike | None = None) -> None:
        """Fills the network, which may be abstract. Raises InputError."""
        rules = [*RULES, *ANIMATEDIFF, *unet(self.unet.blocks_per_level)]
        try:
            convert.load(network, self.tensors, rules, animatediff.BUFFERS, dtype=dtype)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None

    def save(self, network: nnx.Module, out: str | Path) -> None:
        """Writes the folder again as `out`, with the weights of `network`."""
        keys = [*unet_keys(self.unet.blocks_per_level), *ANIMATEDIFF_KEYS, *KEYS]
        projections = "" if self.linear else r"|\.attentions\.\d+\.proj_(in|out)"
        pointwise = rf"(conv_shortcut|^controlnet_down_blocks\.\d+|^controlnet_mid_block{projections})\.weight$"
        made = {key: np.ascontiguousarray(v) for key, v in convert.unfit(parameters(network), keys, pointwise).items()}
        buffers = {key: np.array(self.tensors[key]) for key in self.tensors if re.search(animatediff.BUFFERS, key)}
        Path(out).mkdir(parents=True, exist_ok=True)
        shutil.copy(self.path / "config.json", out)
        save_file({**made, **buffers}, Path(out) / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def read_control(path: str | Path, weights: bool = True) -> Control:
    """Reads a folder; without `weights` only its config. Raises InputError."""
    path, where = Path(path), f"{Path(path) / 'config.json'}"
    config = animatediff.plain(read_json(path / "config.json", WANTED))
    sparse = choose(config.get("_class_name"), SPARSE, f"{where}: _class_name")
    expect(config, KNOWN, where)
    require(config, ("block_out_channels", "down_block_types", "cross_attention_dim"), where)
    image: dict[str, Any] = {
        **config,
        "_class_name": "UNet2DConditionModel",
        "mid_block_type": "UNetMidBlock2DCrossAttn",
    }
    image["up_block_types"] = [kind.replace("Down", "Up") for kind in config["down_block_types"][::-1]]
    made, _ = unet_config({**image, **rename_blocks(image, "Motion", "2D")})
    if sparse:
        made = dataclasses.replace(made, after_attention=motion(config, len(made.channels)))
    widths = tuple(config.get("conditioning_embedding_out_channels") or (16, 32, 96, 256))
    latents = sparse and config.get("use_simplified_condition_embedding", True)
    control = ControlConfig(
        config.get("conditioning_channels", 4 if sparse else 3), () if latents else widths, sparse=sparse
    )
    linear = bool(config.get("use_linear_projection", False))
    return Control(path, made, control, read_weights(path) if weights else {}, linear)


def motion(config: Mapping[str, Any], levels: int) -> Temporal:
    """The layers over time of a SparseControlNetModel."""
    return Temporal(
        heads=(config.get("motion_num_attention_heads", 8),) * levels,
        levels=(True,) * levels,
        mid=False,
        positions=True,
        longest=config.get("motion_max_seq_length", 32),
        attentions=1,
    )
