"""I2VGen-XL (Zhang et al. 2023) as a folder of diffusers: ModelScope's U-Net with what reads a picture in one file, and
beside it CLIP's two towers and Stable Diffusion's autoencoder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from vidjax.errors import InputError
from vidjax.models.clip import ClipImageConfig
from vidjax.models.layers import Over
from vidjax.models.picture_tokens import PictureTokens
from vidjax.models.unet import UNetConfig
from vidjax.models.video_model import VideoModel
from vidjax.weights import clip
from vidjax.weights.components import Components, Part
from vidjax.weights.configs import Config, expect, unet_config
from vidjax.weights.convert import Rules
from vidjax.weights.diffusers import MODELSCOPE, MODELSCOPE_KEYS
from vidjax.weights.folder import PICTURE_LAYOUT
from vidjax.weights.stable_video import clip_image_config

CLASS = "I2VGenXLUNet"
PIXELS, FRAMES = (704, 1280), 16  # what its pipeline makes
DEFAULTS = dict(num_steps=50, guidance_scale=9.0, fps=16.0)  # those of its pipeline
TWICE = "vidjax_twice"  # in a folder that was written here, if the picture's channels are added to themselves
SKIP = 1  # of the text encoder's layers, the last ones

UNET: Rules = [
    *MODELSCOPE,
    (r"^fps_embedding\.0\.", "add_embedding.linear_1."),
    (r"^fps_embedding\.2\.", "add_embedding.linear_2."),
]
UNET_KEYS: Rules = [  # after those of `diffusers.unet_keys`
    *MODELSCOPE_KEYS,
    (r"^add_embedding\.linear_1\.", "fps_embedding.0."),
    (r"^add_embedding\.linear_2\.", "fps_embedding.2."),
]
PICTURE = r"^(image_latents_\w+|context_embedding)\."  # of its U-Net's keys those of the picture
PICTURE_PARTS = ("tokens", "latent_tokens", "frames")
READ_PICTURE: Rules = [
    (r"^context_embedding\.0\.", "tokens.linear_1."),
    (r"^context_embedding\.2\.", "tokens.linear_2."),
    (r"^image_latents_context_embedding\.0\.", "latent_tokens.conv1."),
    (r"^image_latents_context_embedding\.3\.", "latent_tokens.conv2."),
    (r"^image_latents_context_embedding\.5\.", "latent_tokens.conv3."),
    (r"^image_latents_proj_in\.0\.", "frames.conv1."),
    (r"^image_latents_proj_in\.2\.", "frames.conv2."),
    (r"^image_latents_proj_in\.4\.", "frames.conv3."),
    (r"^image_latents_temporal_encoder\.norm1\.", "frames.over_time.attn1.norm."),
    (r"^image_latents_temporal_encoder\.attn1\.to_out\.0\.", "frames.over_time.attn1.to_out."),
    (r"^image_latents_temporal_encoder\.ff\.net\.0\.proj\.", "frames.over_time.ff.proj_in."),
    (r"^image_latents_temporal_encoder\.ff\.net\.2\.", "frames.over_time.ff.proj_out."),
    (r"^image_latents_temporal_encoder\.", "frames.over_time."),
]
PICTURE_KEYS: Rules = [
    (r"^tokens\.linear_1\.", "context_embedding.0."),
    (r"^tokens\.linear_2\.", "context_embedding.2."),
    (r"^latent_tokens\.conv1\.", "image_latents_context_embedding.0."),
    (r"^latent_tokens\.conv2\.", "image_latents_context_embedding.3."),
    (r"^latent_tokens\.conv3\.", "image_latents_context_embedding.5."),
    (r"^frames\.conv1\.", "image_latents_proj_in.0."),
    (r"^frames\.conv2\.", "image_latents_proj_in.2."),
    (r"^frames\.conv3\.", "image_latents_proj_in.4."),
    (r"^frames\.over_time\.attn1\.norm\.", "image_latents_temporal_encoder.norm1."),
    (r"^frames\.over_time\.attn1\.to_out\.", "image_latents_temporal_encoder.attn1.to_out.0."),
    (r"^frames\.over_time\.ff\.proj_in\.", "image_latents_temporal_encoder.ff.net.0.proj."),
    (r"^frames\.over_time\.ff\.proj_out\.", "image_latents_temporal_encoder.ff.net.2."),
    (r"^frames\.over_time\.", "image_latents_temporal_encoder."),
]


def read_unet(config: Config, norm_over: Over | None = None) -> tuple[UNetConfig, Rules]:
    """Converts the U-Net's config.json; also returns `UNET`. Raises InputError for what is not offered."""
    if norm_over not in (None, "frame"):
        raise InputError(f"norm_over={norm_over!r} is of Tune-A-Video; I2VGen-XL's is the frame")
    expect(config, {"in_channels": (4,), "out_channels": (4,), TWICE: (False, True)}, "unet/config.json")
    common = {key: value for key, value in config.items() if key not in (TWICE, "num_attention_heads")}
    made, _ = unet_config({**common, "_class_name": "UNet3DConditionModel"})
    return dataclasses.replace(made, in_channels=2 * made.in_channels, vector_dim=made.channels[0]), UNET


def write_config(config: dict[str, Any], model: VideoModel) -> dict[str, Any]:
    """Adds to the config.json of a U-Net what its class does otherwise: `TWICE`, if `model` does that."""
    plain = {key: value for key, value in config.items() if key != TWICE}
    return {**plain, TWICE: True} if model.picture.twice else plain


@dataclasses.dataclass(frozen=True)
class PictureAndText(Components):
    """Those of I2VGen-XL: besides Stable Diffusion's, CLIP's image encoder, and what of unet/ reads the picture."""

    image: ClipImageConfig = dataclasses.field(default_factory=ClipImageConfig)
    twice: bool = False
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=lambda: DEFAULTS)

    @classmethod
    def of(cls, path: str | Path) -> "PictureAndText":
        """Reads the configs and the tokenizer of the folder `path`, no weights. Raises InputError."""
        known = Components.of(path)
        folder, text = known.folder, dataclasses.replace(known.text, skip=SKIP)
        image = clip_image_config(folder.config("image_encoder"), folder.config("feature_extractor"))
        if image.projection != text.dim:
            raise InputError(
                f"{path}: the picture's features are {image.projection}, those of the text {text.dim}; they should be "
                f"as many: take both of one folder with {PICTURE_LAYOUT}"
            )
        twice = folder.config("unet").get(TWICE, False)
        return cls(folder, known.autoencoder, known.scaling, text, known.tokenize, image=image, twice=twice)

    def embedders(self, unet: UNetConfig, rngs: nnx.Rngs) -> dict[str, Any]:
        """Makes the embedders of captions and of pictures, with random parameters."""
        features, tokens_dim, channels = unet.channels[0], self.text.dim, self.autoencoder.latent_channels
        picture = PictureTokens(self.image, features, tokens_dim, channels, self.twice, rngs=rngs)
        return {**super().embedders(unet, rngs), "picture": picture}

    def parts(self, model: VideoModel) -> list[Part]:
        """The parts of the folder beside its U-Net, as the modules of `model` that they fill."""
        own = nnx.Dict({name: getattr(model.picture, name) for name in PICTURE_PARTS})
        return [
            Part("unet", own, READ_PICTURE, PICTURE_KEYS, rf"^(?!{PICTURE[1:]})"),
            *super().parts(model),
            Part("image_encoder", model.picture.encoder, clip.IMAGE, clip.IMAGE_KEYS, clip.BUFFERS, "model"),
        ]
