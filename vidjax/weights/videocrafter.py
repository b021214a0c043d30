"""VideoCrafter 1 and 2 (Chen et al. 2023, 2024) in one file: text to video at 512 and 1024 pixels, and of a picture.

The file is a training run's, as safetensors (`vidjax.convert model.ckpt`); its weights have a licence of their own.
Shapes say which of the four it is. CLIP's words are in no such file: `tokenizer/` lies beside it.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from flax import nnx

from vidjax.diffusion import schedule as schedules
from vidjax.diffusion.schedule import Schedule
from vidjax.errors import InputError
from vidjax.models.autoencoder import AutoencoderConfig
from vidjax.models.clip import ClipImageConfig
from vidjax.models.conditioning import ClipEmbedder, RateEmbedder
from vidjax.models.resampler import ResampledPicture, ResamplerConfig
from vidjax.models.unet import Temporal, UNetConfig
from vidjax.models.video_model import VideoModel
from vidjax.weights import clip, open_clip
from vidjax.weights.configs import autoencoder_config, clip_text_config
from vidjax.weights.convert import Rules, rename
from vidjax.weights.single_file import LDM, UNET, levels
from vidjax.weights.tensors import shapes_under
from vidjax.weights.video_file import FEED_FORWARD, Entry, Filling, VideoFile

STEM, STEM_HEADS = "init_attn.0.", 8
ENCODER, RESAMPLER = "embedder.model.visual.", "image_proj_model."  # of the model that moves a picture
HEAD = 64  # features of a head of the resampler
SCALE = "scale_arr"  # what x0 is multiplied by at each level
TOLD_RATE = "fps_embedding.0.weight"
FRAMES = 16

# Keys of the U-Net to parameter paths.
CRAFTER: Rules = [
    (r"^middle_block\.3\.", "mid.1.0."),
    (r"^middle_block\.2\.", "mid.0.2."),
    (r"\.0\.temopral_conv\.conv(\d)\.0\.", r".temporal_resnet.norm\1."),  # their spelling
    (r"\.0\.temopral_conv\.conv(\d)\.[23]\.", r".temporal_resnet.conv\1."),
    (r"^init_attn\.0\.", "stem.temporal_in."),
    (r"^fps_embedding\.0\.", "add_embedding.linear_1."),
    (r"^fps_embedding\.2\.", "add_embedding.linear_2."),
    *LDM,
    (r"^((?:down|up|mid)\.\d+)\.2\.", r"\1.temporal_attention."),
    (r"\.transformer_blocks\.", ".blocks."),
    (r"\.relative_position_([kv])\.embeddings_table$", r".relative.\1"),
    (r"(blocks\.\d+)\.norm([12])\.", r"\1.attn\2.norm."),
    (r"(blocks\.\d+)\.norm3\.", r"\1.ff.norm."),
    *FEED_FORWARD,
]
RESAMPLER_RULES: Rules = [
    (r"^latents$", "queries"),
    (r"^(layers\.\d+)\.0\.norm1\.", r"\1.attn.norm_source."),
    (r"^(layers\.\d+)\.0\.norm2\.", r"\1.attn.norm."),
    (r"^(layers\.\d+)\.0\.to_", r"\1.attn.to_"),
    (r"^(layers\.\d+)\.1\.0\.", r"\1.ff.norm."),
    (r"^(layers\.\d+)\.1\.1\.", r"\1.ff.fc1."),
    (r"^(layers\.\d+)\.1\.3\.", r"\1.ff.fc2."),
]


def unet_of(shapes: Mapping[str, tuple[int, ...]]) -> UNetConfig:
    """The U-Net whose tensors have these shapes, but for a picture's tokens; any error means that it is none."""
    channels, n = levels(shapes)
    attends = [f"input_blocks.{level * (n + 1) + 1}.1.norm.weight" in shapes for level in range(len(channels))]
    head_dim = shapes[f"{STEM}transformer_blocks.0.attn1.to_q.weight"][0] // STEM_HEADS
    tokens = next(
        shape[1] for key, shape in shapes.items() if key.endswith(".1.transformer_blocks.0.attn2.to_k.weight")
    )
    table = shapes.get(f"{STEM}transformer_blocks.0.attn1.relative_position_k.embeddings_table")
    heads = tuple(c // head_dim for c in channels)
    return UNetConfig(
        in_channels=shapes["input_blocks.0.0.weight"][1],
        out_channels=shapes["out.2.weight"][0],
        channels=channels,
        blocks_per_level=n,
        attention_levels=attends,
        heads=heads,
        tokens_dim=tokens,
        vector_dim=channels[0] if TOLD_RATE in shapes else None,
        after_resnet="convs" if convolves(shapes) else "none",
        after_attention=Temporal(heads, attends, relative=table is not None),
        stem_heads=(STEM_HEADS, head_dim),
        reach=(table[0] - 1) // 2 if table else FRAMES,
    )


def convolves(shapes: Mapping[str, Any]) -> bool:
    """Whether convolutions over time follow the residual blocks: in the second of text, and the one of a picture."""
    return any(".temopral_conv." in key for key in shapes)


class CrafterFile(VideoFile):
    """A checkpoint of VideoCrafter. Raises InputError if something of it or beside it is missing."""

    family = "VideoCrafter"

    @staticmethod
    def fits(keys: Mapping[str, Any]) -> bool:
        """Whether a file has VideoCrafter's U-Net: layers over time in front of its first level."""
        return any(key.startswith(UNET + STEM) for key in keys)

    @property
    def told_rate(self) -> bool:
        """Whether the U-Net is told the frames per second: all but the first of text do."""
        return TOLD_RATE in self.shapes

    @property
    def convolves(self) -> bool:
        """See `convolves`."""
        return convolves(self.shapes)

    @property
    def moves_picture(self) -> bool:
        """Whether it makes videos of a picture."""
        return any(key.endswith(".attn2.to_k_ip.weight") for key in self.shapes)

    def read_unet(self) -> UNetConfig:
        """The U-Net, by its shapes. Raises InputError for one that sees more than the noisy video."""
        made = unet_of(self.shapes)
        if made.in_channels != made.out_channels:
            raise InputError(
                f"{self.path}: its U-Net sees {made.in_channels} channels and makes {made.out_channels}: it is none of "
                "VideoCrafter's but one that came of it, such as DynamiCrafter, which is not read"
            )
        return dataclasses.replace(made, picture_tokens=self.resampler.queries if self.moves_picture else 0)

    def autoencoder(self) -> AutoencoderConfig:
        """That of frames, in the layout of Stable Diffusion."""
        return autoencoder_config(self.image.config("vae"))[0]

    @property
    def latents(self) -> Mapping[str, float]:
        """`scale` and `shift` of the latents, Stable Diffusion's."""
        return {"scale": 0.18215, "shift": 0.0}

    def schedule(self) -> Schedule:
        """Stable Diffusion's, but for what x0 is multiplied by: as the file says, else as its authors' settings do."""
        base = dataclasses.replace(schedules.scaled_linear(set_alpha_to_one=False), spacing="leading", offset=1)
        low = {(True, True): 0.7, (True, False): 0.3}.get((self.told_rate, self.convolves), 1.0)
        if SCALE in self.all:
            with self._explain(SCALE):
                low = float(np.ravel(self.all[SCALE])[-1])
        return base if low == 1 else schedules.scale_data(base, low)

    @cached_property
    def clip(self) -> ClipImageConfig:
        """The encoder of the picture, by its shapes."""
        shapes = shapes_under(self.all.places, ENCODER)
        dim, _, patch, _ = shapes["conv1.weight"]
        layers = 1 + max(int(m[1]) for key in shapes if (m := re.match(r"transformer\.resblocks\.(\d+)\.", key)))
        return ClipImageConfig(
            dim=dim,
            hidden=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
            layers=layers,
            heads=max(dim // open_clip.IMAGE_HEAD, 1),
            activation="gelu",
            projection=None,
            size=patch * math.isqrt(shapes["positional_embedding"][0] - 1),
            patch=patch,
        )

    @cached_property
    def resampler(self) -> ResamplerConfig:
        """What makes tokens of the picture's features, by its shapes."""
        shapes = shapes_under(self.all.places, RESAMPLER)
        _, queries, dim = shapes["latents"]
        return ResamplerConfig(
            source=shapes["proj_in.weight"][1],
            dim=dim,
            out=shapes["proj_out.weight"][0],
            queries=queries,
            layers=1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("layers.")),
            heads=shapes["layers.0.0.to_q.weight"][0] // HEAD,
            head_dim=HEAD,
        )

    def embedders(self, rngs: nnx.Rngs) -> dict[str, Any]:
        """Makes the embedders of captions, of the rate, and of the picture."""
        assert self.tokenize is not None
        text = clip_text_config(self.image.config("text_encoder"))
        found: dict[str, Any] = {"text": ClipEmbedder(text, self.tokenize("").tolist(), rngs=rngs)}
        if self.told_rate:
            found["fps"] = RateEmbedder(levels(self.shapes)[0][0])
        if self.moves_picture:
            found["picture"] = ResampledPicture(self.clip, self.resampler, rngs=rngs)
        return found

    def fillings(self, model: VideoModel) -> list[Filling]:
        """The U-Net, what is in the layout of Stable Diffusion, and what sees the picture."""
        unet = Filling("the U-Net", model.unet, {rename(key, CRAFTER): Entry(UNET + key) for key in self.shapes})
        found = [unet, *self.image_fillings(model)]
        if not self.moves_picture:
            return found
        read = shapes_under(self.all.places, ENCODER)
        read.pop("proj", None)  # the tokens are made of what comes before it
        encoder = {
            rename(key, clip.IMAGE): Entry(ENCODER + own, part)
            for key, (own, part) in open_clip.part_names(read, open_clip.IMAGE).items()
        }
        own = shapes_under(self.all.places, RESAMPLER)
        resampler = {rename(key, RESAMPLER_RULES): Entry(RESAMPLER + key) for key in own}
        picture = model.picture
        return [
            *found,
            Filling("the picture's encoder", picture.encoder, encoder),
            Filling("the picture's resampler", picture.resampler, resampler),
        ]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels that it was trained on."""
        return (576, 1024) if self.told_rate and not self.convolves else (320, 512)

    @property
    def frames(self) -> int:
        """Frames of the clips that it was trained on."""
        return FRAMES

    @property
    def defaults(self) -> dict[str, float]:
        """Fields of SampleConfig in which its own programs differ from ours."""
        rate = 8.0 if self.moves_picture else 28.0 if self.told_rate else 10.0
        return {"fps": rate, "guidance_scale": 12.0, "eta": 1.0}
