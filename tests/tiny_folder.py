"""A Stable Diffusion of toy size with random weights, as a folder in the layout of `diffusers`; no torch needed."""

import json
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx

from vidjax.training.stage import Stage
from vidjax.weights import convert, folder, pretrained

LETTERS = [a + end for a in "!" + string.ascii_lowercase for end in ("", "</w>")]
ENDS = ["<|startoftext|>", "<|endoftext|>"]
VOCABULARY, MERGES = [*LETTERS, "th", "the</w>", *ENDS], ["t h", "th e</w>"]
CONFIGS = {
    "unet": dict(
        _class_name="UNet2DConditionModel",
        sample_size=8,
        block_out_channels=[32],
        down_block_types=["CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D"],
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=8,
    ),
    "vae": dict(
        _class_name="AutoencoderKL",
        block_out_channels=[8, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    ),
    "text_encoder": dict(
        architectures=["CLIPTextModel"],
        vocab_size=len(VOCABULARY),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        hidden_act="quick_gelu",
        bos_token_id=len(VOCABULARY) - 2,
        eos_token_id=len(VOCABULARY) - 1,
    ),
    "scheduler": dict(
        _class_name="DDIMScheduler",
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        num_train_timesteps=1000,
        set_alpha_to_one=False,
        steps_offset=1,
        clip_sample=False,
        prediction_type="epsilon",
    ),
}
# With attention in the middle alone: a training step compiles in half the time.
MIDDLE = CONFIGS["unet"] | dict(down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"])
# What stands around the U-Net at the size of the real one, but for the words.
STABLE_DIFFUSION_1 = {
    **CONFIGS,
    "vae": dict(
        _class_name="AutoencoderKL",
        block_out_channels=[128, 256, 512, 512],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        latent_channels=4,
    ),
    "text_encoder": dict(
        CONFIGS["text_encoder"],
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
    ),
}
# A U-Net of ModelScope's kind, with layers over time of its own.
VIDEO = dict(
    CONFIGS["unet"],
    _class_name="UNet3DConditionModel",
    down_block_types=["CrossAttnDownBlock3D"],
    up_block_types=["CrossAttnUpBlock3D"],
    attention_head_dim=8,
)
VIDEO_MIDDLE = VIDEO | dict(down_block_types=["DownBlock3D"], up_block_types=["UpBlock3D"])

# A Stable Video Diffusion. It has 32 groups: of 32 features they would take out all that the time adds.
STABLE_VIDEO = {
    "unet": dict(
        _class_name="UNetSpatioTemporalConditionModel",
        block_out_channels=[64],
        down_block_types=["CrossAttnDownBlockSpatioTemporal"],
        up_block_types=["CrossAttnUpBlockSpatioTemporal"],
        layers_per_block=1,
        num_attention_heads=[2],
        cross_attention_dim=24,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        num_frames=3,
    ),
    "vae": dict(
        _class_name="AutoencoderKLTemporalDecoder",
        block_out_channels=[32, 32],
        down_block_types=["DownEncoderBlock2D"] * 2,
        layers_per_block=2,
    ),
    "image_encoder": dict(
        architectures=["CLIPVisionModelWithProjection"],
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        patch_size=112,
        image_size=224,
        projection_dim=24,
        hidden_act="gelu",
    ),
    "feature_extractor": dict(crop_size=224, size=224),
    "scheduler": dict(
        _class_name="EulerDiscreteScheduler",
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    ),
}
# With attention in the middle alone.
STABLE_VIDEO_MIDDLE = STABLE_VIDEO["unet"] | dict(
    down_block_types=["DownBlockSpatioTemporal"], up_block_types=["UpBlockSpatioTemporal"]
)

# An I2VGen-XL: a ModelScope, both towers of CLIP. Its text encoder's last layer is not used.
I2VGEN = {
    "unet": dict(
        _class_name="I2VGenXLUNet",
        sample_size=8,
        block_out_channels=[32],
        down_block_types=["CrossAttnDownBlock3D"],
        up_block_types=["CrossAttnUpBlock3D"],
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=8,
        norm_num_groups=8,
    ),
    "vae": CONFIGS["vae"],
    "text_encoder": dict(CONFIGS["text_encoder"], num_hidden_layers=2, hidden_act="gelu"),
    "image_encoder": dict(STABLE_VIDEO["image_encoder"], patch_size=16, image_size=32),
    "feature_extractor": dict(crop_size=dict(height=32, width=32), size=dict(shortest_edge=32)),
    "scheduler": dict(
        _class_name="DDIMScheduler",
        beta_schedule="squaredcos_cap_v2",
        num_train_timesteps=1000,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
        steps_offset=1,
        timestep_spacing="leading",
    ),
}
I2VGEN_MIDDLE = I2VGEN["unet"] | dict(down_block_types=["DownBlock3D"], up_block_types=["UpBlock3D"])


def write_configs(
    path: Path, configs: dict = CONFIGS, vocabulary: Sequence[str] = VOCABULARY, merges: Sequence[str] = MERGES
) -> Path:
    """All of a folder but its weights."""
    for part, config in configs.items():
        (path / part).mkdir(parents=True)
        (path / part / folder.CONFIGS.get(part, "config.json")).write_text(json.dumps(config))
    if "text_encoder" not in configs:
        return path
    (path / "tokenizer").mkdir()
    (path / "tokenizer" / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (path / "tokenizer" / "merges.txt").write_text("\n".join(("#version: 0.2", *merges, "")))
    length = configs["text_encoder"]["max_position_embeddings"]
    kind = dict(tokenizer_class="CLIPTokenizer", model_max_length=length, pad_token="<|endoftext|>")
    (path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(kind))
    return path


def write_folder(path: Path, seed: int = 0, unet: dict | None = None, configs: dict = CONFIGS) -> Path:
    """The folder `path`, made; its U-Net has 8x8 latents of 16x16 pixels."""
    configs = write_configs(path.with_name(path.name + "-configs"), {**configs, "unet": unet or configs["unet"]})
    model, random = pretrained.load(configs, weights=False).model, np.random.default_rng(seed)
    for place, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        noise = random.standard_normal(leaf.shape).astype("f")
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
        leaf.set_value(1 + 0.1 * noise if place[-1] == "scale" else noise * np.float32(fan_in**-0.5))
    pretrained.save(model, configs, path)
    return path


def moved(stage: Stage) -> nnx.Module:
    """The model that the stage starts from, all that it trains moved."""
    _, model = stage.start(True)
    for path, leaf in convert.parameters(model).items():
        if stage.trainable(path):
            leaf.set_value(leaf[...] + 0.1)
    return model
