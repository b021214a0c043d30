"""Names in checkpoints of `diffusers` to parameter paths here and back, two lists of rules per family."""

import re
from collections.abc import Mapping
from typing import Any

from vidjax.weights.convert import Rules


def rename_blocks(config: Mapping[str, Any], old: str, new: str) -> dict[str, list[str]]:
    """Returns the kinds of blocks that a U-Net's config names, with `new` in place of `old` in each."""
    keys = ("down_block_types", "up_block_types")
    return {key: [kind.replace(old, new) for kind in config[key]] for key in keys}


def unet(blocks_per_level: int) -> Rules:
    """Makes the rules for Stable Diffusion's U-Net (UNet2DConditionModel), which all others share.

    The schedule is flat here: stage `level * (n + 1) + i`, the sampler in the level's last one.
    """
    n = blocks_per_level

    def stage(m: re.Match) -> str:
        i = n if m[3].endswith("sampler") else int(m[4])
        return f"{m[1]}.{int(m[2]) * (n + 1) + i}.{m[3].replace('sampler', 'sample')}."

    return [
        (r"^(down|up)_blocks\.(\d+)\.(\w+)s\.(\d+)\.", stage),
        (r"^mid_block\.(\w+)s\.(\d+)\.", r"mid.\2.\1."),
        (r"\.transformer_blocks\.", ".blocks."),
        (r"(blocks\.\d+\.(\w+\.layer\.)?)norm([12])\.", r"\1attn\3.norm."),
        (r"(blocks\.\d+\.(\w+\.layer\.)?)norm3\.", r"\1ff.norm."),
        (r"\.net\.0\.proj\.", ".proj_in."),
        (r"\.net\.2\.", ".proj_out."),
        (r"\.to_out\.0\.", ".to_out."),
    ]


# Before those of `unet`: what a family calls its own layers.
TUNE_A_VIDEO: Rules = [(r"\.norm_temp\.", ".attn_temp.norm.")]
ANIMATEDIFF: Rules = [(r"\.motion_modules\.", ".temporal_attentions.")]
MODELSCOPE: Rules = [
    (r"^transformer_in\.", "stem.temporal_in."),
    (r"\.temp_attentions\.", ".temporal_attentions."),
    (r"\.temp_convs\.(\d+)\.conv(\d)\.0\.", r".temporal_resnets.\1.norm\2."),
    (r"\.temp_convs\.(\d+)\.conv(\d)\.[23]\.", r".temporal_resnets.\1.conv\2."),
]


def unet_keys(blocks_per_level: int) -> Rules:
    """Makes the rules for the way back, from parameter paths to keys: the inverse of `unet`."""
    n = blocks_per_level

    def layer(m: re.Match) -> str:
        level, i = divmod(int(m[2]), n + 1)
        name, i = (f"{m[3]}r", 0) if m[3].endswith("sample") else (m[3], i)
        return f"{m[1]}_blocks.{level}.{name}s.{i}."

    return [
        (r"^(down|up)\.(\d+)\.(\w+)\.", layer),
        (r"^mid\.(\d+)\.(\w+)\.", r"mid_block.\2s.\1."),
        (r"\.blocks\.", ".transformer_blocks."),
        (r"\.attn([12])\.norm\.", r".norm\1."),
        (r"\.ff\.norm\.", ".norm3."),
        (r"\.ff\.proj_in\.", ".ff.net.0.proj."),
        (r"\.ff\.proj_out\.", ".ff.net.2."),
        (r"\.to_out\.", ".to_out.0."),
    ]


# After those of `unet_keys`.
TUNE_A_VIDEO_KEYS: Rules = [(r"\.attn_temp\.norm\.", ".norm_temp.")]
ANIMATEDIFF_KEYS: Rules = [(r"\.temporal_attentions\.", ".motion_modules.")]
MODELSCOPE_KEYS: Rules = [
    (r"^stem\.temporal_in\.", "transformer_in."),
    (r"\.temporal_attentions\.", ".temp_attentions."),
    (r"\.temporal_resnets\.(\d+)\.norm(\d)\.", r".temp_convs.\1.conv\2.0."),
    (r"\.temporal_resnets\.(\d+)\.conv1\.", r".temp_convs.\1.conv1.2."),
    (r"\.temporal_resnets\.(\d+)\.conv([2-4])\.", r".temp_convs.\1.conv\2.3."),  # behind a dropout
]
