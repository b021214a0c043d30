"""Stable Video Diffusion (Blattmann et al. 2023) as a folder of diffusers: its configs, names, and what is beside its
U-Net, a CLIP that sees the picture and an autoencoder whose decoder looks over time."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from vidjax.errors import InputError
from vidjax.models.autoencoder import Autoencoder, AutoencoderConfig
from vidjax.models.clip import ClipImageConfig
from vidjax.models.layers import Over
from vidjax.models.picture import PictureEmbedder
from vidjax.models.unet import UNetConfig
from vidjax.models.video_model import Codec, VideoModel
from vidjax.weights import clip
from vidjax.weights.components import Part
from vidjax.weights.configs import Config, autoencoder_config, expect, require, tower
from vidjax.weights.convert import Rules
from vidjax.weights.diffusers_autoencoder import AUTOENCODER_KEYS, DIFFUSERS_AUTOENCODER
from vidjax.weights.folder import Folder
from vidjax.weights.single_file import SingleFile
from vidjax.weights.sources import open_source

CLASS = "UNetSpatioTemporalConditionModel"
NUMBERS = 3  # rate, motion and noise of the picture, each told as a sinusoid
PIXELS = (576, 1024)  # what its pipeline makes, whatever `sample_size` says
DEFAULTS = dict(num_steps=25, guidance_scale=3.0, first_guidance=1.0, fps=7.0)  # those of its pipeline

UNET: Rules = [
    (r"\.resnets\.(\d+)\.spatial_res_block\.", r".resnets.\1."),
    (r"\.resnets\.(\d+)\.temporal_res_block\.", r".temporal_resnets.\1.layer."),
    (r"\.resnets\.(\d+)\.time_mixer\.", r".temporal_resnets.\1."),
    (r"\.temporal_transformer_blocks\.(\d+)\.", r".transformer_blocks.\1.temporal.layer."),
    (r"\.time_pos_embed\.", ".transformer_blocks.0.temporal.layer.positions.mlp."),
    (r"(attentions\.\d+)\.time_mixer\.", r"\1.transformer_blocks.0.temporal."),
    (r"\.norm_in\.", ".ff_in.norm."),
]
UNET_KEYS: Rules = [  # after those of `diffusers.unet_keys`
    (r"\.resnets\.(\d+)\.", r".resnets.\1.spatial_res_block."),
    (r"\.temporal_resnets\.(\d+)\.layer\.", r".resnets.\1.temporal_res_block."),
    (r"\.temporal_resnets\.(\d+)\.mix_factor", r".resnets.\1.time_mixer.mix_factor"),
    (r"\.transformer_blocks\.0\.temporal\.layer\.positions\.mlp\.", ".time_pos_embed."),
    (r"\.transformer_blocks\.0\.temporal\.mix_factor", ".time_mixer.mix_factor"),
    (r"\.transformer_blocks\.(\d+)\.temporal\.layer\.", r".temporal_transformer_blocks.\1."),
    (r"\.ff_in\.norm\.", ".norm_in."),
    (r"\.ff_in\.proj_in\.", ".ff_in.net.0.proj."),
    (r"\.ff_in\.proj_out\.", ".ff_in.net.2."),
]
DECODER: Rules = [
    (r"^decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.temporal_res_block\.", r"decoder.up.\1.temporal_\2.layer."),
    (r"^decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.time_mixer\.", r"decoder.up.\1.temporal_\2."),
    (r"^decoder\.mid_block\.resnets\.(\d+)\.temporal_res_block\.", r"decoder.mid.temporal_\1.layer."),
    (r"^decoder\.mid_block\.resnets\.(\d+)\.time_mixer\.", r"decoder.mid.temporal_\1."),
    (r"\.spatial_res_block\.", "."),
    *DIFFUSERS_AUTOENCODER,
]
DECODER_KEYS: Rules = [
    (r"^decoder\.up\.(\d+)\.temporal_(\d+)\.layer\.", r"decoder.up_blocks.\1.resnets.\2.temporal_res_block."),
    (r"^decoder\.up\.(\d+)\.temporal_(\d+)\.mix", r"decoder.up_blocks.\1.resnets.\2.time_mixer.mix"),
    (r"^decoder\.mid\.temporal_(\d+)\.layer\.", r"decoder.mid_block.resnets.\1.temporal_res_block."),
    (r"^decoder\.mid\.temporal_(\d+)\.mix", r"decoder.mid_block.resnets.\1.time_mixer.mix"),
    (r"^decoder\.up\.(\d+)\.resnet_(\d+)\.", r"decoder.up_blocks.\1.resnets.\2.spatial_res_block."),
    (r"^decoder\.mid\.resnet_(\d+)\.", r"decoder.mid_block.resnets.\1.spatial_res_block."),
    *AUTOENCODER_KEYS,
]


def read_unet(config: Config, norm_over: Over | None = None) -> tuple[UNetConfig, Rules]:
    """Converts the U-Net's config.json; also returns `UNET`. Raises InputError for what is not offered."""
    if norm_over not in (None, "frame"):
        raise InputError(f"norm_over={norm_over!r} is of Tune-A-Video; Stable Video Diffusion's is the frame")
    where = "unet/config.json"
    require(config, ("block_out_channels", "down_block_types"), where)
    channels = tuple(config["block_out_channels"])
    attend = tuple(kind.startswith("CrossAttn") for kind in config["down_block_types"])
    kinds = [("CrossAttn" if yes else "") + "{}BlockSpatioTemporal" for yes in attend]
    numbers = config.get("addition_time_embed_dim", 256)
    known = {
        "down_block_types": ([kind.format("Down") for kind in kinds],),
        "up_block_types": ([kind.format("Up") for kind in kinds[::-1]],),
        "transformer_layers_per_block": (1,),
        "projection_class_embeddings_input_dim": (NUMBERS * numbers,),
    }
    expect(config, known, where)
    single = {"layers_per_block": 2, "cross_attention_dim": 1024}
    for key, value in single.items():
        if not isinstance(config.get(key, value), int):
            raise InputError(f"{where}: {key} is {config[key]!r}, which is not supported; one number is")
    made = UNetConfig(
        in_channels=config.get("in_channels", 8),
        out_channels=config.get("out_channels", 4),
        channels=channels,
        blocks_per_level=config.get("layers_per_block", 2),
        block="blend",
        attention_levels=attend,
        heads=config.get("num_attention_heads", (5, 10, 20, 20)),
        tokens_dim=config.get("cross_attention_dim", 1024),
        vector_dim=NUMBERS * numbers,
        after_resnet="blend",
        uneven_eps=True,
    )
    return made, UNET


def temporal_autoencoder_config(config: Config) -> tuple[AutoencoderConfig, dict[str, float]]:
    """Converts the autoencoder's config.json; also returns `shift` and `scale` of its latents. Raises InputError."""
    expect(config, {"_class_name": ("AutoencoderKLTemporalDecoder",), "layers_per_block": (2,)}, "vae/config.json")
    require(config, ("block_out_channels",), "vae/config.json")
    levels = len(config["block_out_channels"])
    own = {"_class_name": "AutoencoderKL", "up_block_types": ["UpDecoderBlock2D"] * levels}
    made, scaling = autoencoder_config({**config, **own})
    return dataclasses.replace(made, decoder_blend=True), scaling


def clip_image_config(config: Config, preprocessor: Config) -> ClipImageConfig:
    """Converts the config.json of a CLIPVisionModelWithProjection and its preprocessor_config.json: of the latter only
    mean and deviation count, as the picture is scaled otherwise. Raises InputError."""
    where = "image_encoder/config.json"
    expect(config, {"architectures": (["CLIPVisionModelWithProjection"],), "num_channels": (3,)}, where)
    statistics = {"mean": ClipImageConfig.mean, "std": ClipImageConfig.std}
    return ClipImageConfig(
        **tower(config, where, dim=768, hidden=3072, heads=12),
        projection=config.get("projection_dim", 512),
        size=config.get("image_size", 224),
        patch=config.get("patch_size", 32),
        **{name: tuple(preprocessor.get(f"image_{name}", value)) for name, value in statistics.items()},
    )


@dataclasses.dataclass(frozen=True)
class VideoComponents:
    """Those of Stable Video Diffusion: an AutoencoderKLTemporalDecoder and CLIP's image encoder; it reads no text."""

    folder: Folder | SingleFile
    autoencoder: AutoencoderConfig
    scaling: Mapping[str, float]
    image: ClipImageConfig
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=lambda: DEFAULTS)
    tokenize = None

    @classmethod
    def of(cls, path: str | Path) -> "VideoComponents":
        """Reads the configs of the folder `path`, no weights. Raises InputError."""
        folder = open_source(path)
        image = clip_image_config(folder.config("image_encoder"), folder.config("feature_extractor"))
        return cls(folder, *temporal_autoencoder_config(folder.config("vae")), image)

    @property
    def tokens_dim(self) -> int | None:
        """Features of the picture's token."""
        return self.image.projection

    def codec(self, rngs: nnx.Rngs) -> Codec:
        """Makes the codec, with random parameters."""
        return Codec(Autoencoder(self.autoencoder, rngs=rngs), **self.scaling)

    def embedders(self, unet: UNetConfig, rngs: nnx.Rngs) -> dict[str, Any]:
        """Makes the embedder of pictures, with random parameters."""
        assert unet.vector_dim is not None
        return {"picture": PictureEmbedder(self.image, unet.vector_dim // NUMBERS, rngs=rngs)}

    def parts(self, model: VideoModel) -> list[Part]:
        """The parts of the folder beside its U-Net, as the modules of `model` that they fill."""
        return [
            Part("vae", model.codec.autoencoder, DECODER, DECODER_KEYS),
            Part("image_encoder", model.picture.encoder, clip.IMAGE, clip.IMAGE_KEYS, clip.BUFFERS, "model"),
        ]
