"""LVDM (He et al. 2022) in one file: its unconditional U-Nets, of short clips and of frames that continue or fill known
ones, the one of text, and either's autoencoder.

The file is a training run's, as safetensors (`vidjax.convert FILE.ckpt`). Shapes say what the networks are. How latents
are scaled and which betas they were trained with stands in the yaml of the training, a .yaml or .json beside the file.
"""

import dataclasses
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from flax import nnx

from vidjax.diffusion import schedule as schedules
from vidjax.diffusion.schedule import Schedule
from vidjax.errors import InputError
from vidjax.models.autoencoder import LVDM, AutoencoderConfig
from vidjax.models.conditioning import ClipEmbedder
from vidjax.models.unet import UNetConfig
from vidjax.models.video_model import VideoModel
from vidjax.weights.configs import autoencoder_config, clip_text_config
from vidjax.weights.convert import Rules, rename
from vidjax.weights.single_file import AUTOENCODER, LDM, UNET, levels
from vidjax.weights.tensors import shapes_under
from vidjax.weights.video_file import FEED_FORWARD, Entry, Filling, VideoFile, settings_beside

EMA = "model_ema."
RELATIVE = r"\.relative_position_([kv])\.embeddings_table$"
SUBLAYERS = ("attn1", "attn2", "ff", "attn1_temp", "attn2_temp")  # in the order of their norms' numbers

# Keys of the U-Nets to parameter paths, once qkv is parted.
PLAIN: Rules = [
    *LDM,
    (r"\.attention" + RELATIVE, r".attention.layer.attn_temp.relative.\1"),
    (r"\.attention\.(\w+)_s\.", r".attention.layer.attn1.\1."),
    (r"\.attention\.(\w+)_t\.", r".attention.layer.attn_temp.\1."),
    (r"(\.attention\..*)\.proj_out\.", r"\1.to_out."),
    (r"^label_emb\.", "add_embedding."),
]
TEXTUAL: Rules = [
    *LDM,
    (r"\.transformer_blocks\.", ".blocks."),
    (r"\.attn([12])_tmp\.", r".attn\1_temp."),
    (RELATIVE, r".relative.\1"),
    *[(rf"(blocks\.\d+)\.norm{i}\.", rf"\1.{name}.norm.") for i, name in enumerate(SUBLAYERS, 1)],
    *FEED_FORWARD,
]
# Keys of the autoencoder that looks over time: a level's blocks follow its sampling.
AUTOENCODER_3D: Rules = [
    (r"\.(conv|convt)\.(weight|bias)$", r".\2"),
    (r"^encoder\.conv_first\.", "encoder.conv_in."),
    (r"^encoder\.final_block\.0\.", "encoder.norm_out."),
    (r"^encoder\.final_block\.2\.", "encoder.conv_out."),
    (r"^encoder\.conv_blocks\.(\d+)\.down\.", r"encoder.down.\1.downsample.conv."),
    (r"^decoder\.conv_blocks\.(\d+)\.up\.", r"decoder.up.\1.upsample.conv."),
    (r"^encoder\.conv_blocks\.(\d+)\.res\.", lambda m: f"encoder.down.{int(m[1]) + 1}.resnet_0."),
    (r"^decoder\.conv_blocks\.(\d+)\.res(\d)\.", lambda m: f"decoder.up.{int(m[1]) + 1}.resnet_{int(m[2]) - 1}."),
]
TRANSPOSED = r"^decoder\.up\.\d+\.upsample\.conv\.weight$"


def original_of(key: str, keys: Mapping[str, Any]) -> str | None:
    """The key of the convolution whose weight stands under `key` a second time, if it is one of these."""
    if not key.endswith(".weight"):
        return None
    inner = (f"{key.removesuffix('.weight')}.{name}.weight" for name in ("conv", "convt"))
    return next((each for each in inner if each in keys), None)


def averaged(key: str) -> str:
    """The key under which a file has the average over the training of a tensor of the U-Net."""
    return f"{EMA}{('diffusion_model.' + key).replace('.', '')}"


class LvdmFile(VideoFile):
    """A checkpoint of LVDM. Raises InputError if something of it or beside it is missing."""

    family = "LVDM"

    @staticmethod
    def fits(keys: Mapping[str, Any]) -> bool:
        """Whether a file has one of LVDM's U-Nets: attention over time inside its attention modules."""
        return any(key.startswith(UNET) and (".qkv_t." in key or ".attn1_tmp." in key) for key in keys)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """`model.params` of the training's yaml beside the file, {} if there is none. Raises InputError."""
        path, found = settings_beside(self.path)
        inner = found.get("model", found)
        inner = inner.get("params", inner) if isinstance(inner, dict) else inner
        if not isinstance(inner, dict):
            raise InputError(f"{path} has no model.params; it should be the yaml of the training")
        return inner

    @property
    def textual(self) -> bool:
        """Whether it is the model of text."""
        return any(".attn1_tmp." in key for key in self.shapes)

    def number(self, name: str, default: int | float | None) -> float:
        """Reads a number of the settings. Raises InputError if it is none, or there is neither it nor a default."""
        value = self.settings.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            beside = self.path.with_suffix(".yaml")
            raise InputError(
                f"{self.path} does not say its {name} ({value!r} is given): put the yaml of its training beside it as "
                f'{beside.name}, or a {self.path.stem}.json such as {{"scale_factor": 0.334, "shift_factor": 1.46}}'
            )
        return float(value)

    def schedule(self) -> Schedule:
        """The schedule: by default that of the paper's models, of text or without; steps are laid out as theirs."""
        low, high = (0.00085, 0.012) if self.textual else (0.0015, 0.0155)
        steps, ends = int(self.number("timesteps", 1000)), (("linear_start", low), ("linear_end", high))
        made = schedules.scaled_linear(steps, *(self.number(*end) for end in ends), set_alpha_to_one=False)
        return dataclasses.replace(made, spacing="leading", offset=1)

    def read_unet(self) -> UNetConfig:
        """The U-Net, by its shapes."""
        shapes, textual = self.shapes, self.textual
        channels, n = levels(shapes)
        at = lambda key: int(key.split(".")[1])
        probe = "norm" if textual else "norm_s"
        attends = [f"input_blocks.{level * (n + 1) + 1}.1.{probe}.weight" in shapes for level in range(len(channels))]
        tables = {at(key): shape for key, shape in shapes.items() if re.match(r"input_.*relative_position_k", key)}
        head = {level: tables[level * (n + 1) + 1][1] for level, yes in enumerate(attends) if yes}
        last = next(shape for key, shape in shapes.items() if re.match(r"middle_.*relative_position_k", key))
        heads = [
            channels[-1] // last[1] if not yes else c // head[level]
            for level, (c, yes) in enumerate(zip(channels, attends))
        ]
        common: dict[str, Any] = dict(
            in_channels=shapes["input_blocks.0.0.weight"][1],
            out_channels=shapes["out.2.weight"][0],
            channels=tuple(channels),
            blocks_per_level=n,
            attention_levels=tuple(attends),
            heads=tuple(heads),
            norm_over="clip",
            reach=(last[0] - 1) // 2,
            scale_shift=shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * channels[0],
        )
        if textual:
            tokens = next(shape[1] for key, shape in shapes.items() if key.endswith(".attn2.to_k.weight"))
            return UNetConfig(**common, block="lvdm_text", attention_norm_over="clip", tokens_dim=tokens)
        table = shapes.get("label_emb.weight", (None,))[0]
        plain = dict(block="lvdm", attention="plain", tokens_dim=None, transposed=True, vector_levels=table)
        return UNetConfig(**common, **plain)

    @cached_property
    def latents(self) -> dict[str, float]:
        """`scale` and `shift` of the latents, z' = scale (z + shift)."""
        default = (0.18215, 0.0) if self.textual else (None, None)
        return dict(zip(("scale", "shift"), map(self.number, ("scale_factor", "shift_factor"), default)))

    def autoencoder(self) -> AutoencoderConfig:
        """That of the frames of the model of text, that of clips of the others."""
        if self.textual:
            return autoencoder_config(self.image.config("vae"))[0]
        own = shapes_under(self.all.places, AUTOENCODER)
        try:
            width, latent = own["encoder.conv_first.conv.weight"][0], own["post_quant_conv.weight"][0]
        except KeyError as error:
            raise InputError(f"{self.path} has no {AUTOENCODER}{error.args[0]}: get it again") from None
        return dataclasses.replace(
            LVDM,
            latent_channels=latent,
            channels=tuple(width * 2**i for i in range(4)),
            decoder_channels=(2 * width, 4 * width, 8 * width, latent),
        )

    def embedders(self, rngs: nnx.Rngs) -> dict[str, Any]:
        """Makes the embedder of captions of the model of text."""
        if not self.textual:
            return {}
        text = clip_text_config(self.image.config("text_encoder"))
        assert self.tokenize is not None
        return {"text": ClipEmbedder(text, self.tokenize("").tolist(), rngs=rngs)}

    def unet_entries(self) -> dict[str, Entry]:
        """The U-Net's tensors by parameter path: their averages over the training, if the file has these."""
        rules, entries = TEXTUAL if self.textual else PLAIN, {}
        for key in self.shapes:
            source = averaged(key) if averaged(key) in self.all.places else UNET + key
            if m := re.search(r"\.qkv_([st])\.", key):
                for part, letter in enumerate("qkv"):
                    entries[rename(key.replace(m[0], f".to_{letter}_{m[1]}."), rules)] = Entry(source, part)
            else:
                entries[rename(key, rules)] = Entry(source)
        return entries

    def autoencoder_entries(self) -> dict[str, Entry]:
        """The tensors of the autoencoder of clips by parameter path; its convolutions' weights are there twice."""
        entries = {}
        for key in self.all.places:
            own = key.removeprefix(AUTOENCODER)
            if key == own or own.startswith("loss.") or original_of(key, self.all.places):
                continue
            name = rename(own, AUTOENCODER_3D)
            entries[name] = Entry(key, transposed=bool(re.match(TRANSPOSED, name)))
        return entries

    def fillings(self, model: VideoModel) -> list[Filling]:
        """The U-Net and either's autoencoder, with the text encoder of the model of text."""
        unet = Filling("the U-Net", model.unet, self.unet_entries())
        if self.textual:
            return [unet, *self.image_fillings(model)]
        return [unet, Filling("the autoencoder", model.codec.autoencoder, self.autoencoder_entries())]

    @property
    def defaults(self) -> dict[str, float]:
        """Fields of SampleConfig in which its own programs differ from ours."""
        known = dict(known_level=0.1, frame_guidance=1.1) if "label_emb.weight" in self.shapes else {}
        return {"fps": 8.0, **(dict(guidance_scale=15.0, eta=1.0) if self.textual else known)}

    @property
    def frames(self) -> int:
        """Frames of the clips that it was trained on."""
        return int(self.unet().reach) * self.autoencoder().strides[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels that it was trained on."""
        size = self.settings.get("image_size", 32)
        height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
        if not isinstance(height, int) or not isinstance(width, int):
            raise InputError(f"the yaml beside {self.path}: image_size={size!r} is no number of latents")
        _, h, w = self.autoencoder().strides
        return height * h, width * w

    def tensors(self, model: VideoModel) -> dict[str, np.ndarray]:
        """What the file has with the parameters of `model` in it; averages over the training are the model's, too."""
        made = super().tensors(model)
        for key in self.shapes:  # the trained and the averaged ones are the same now
            if averaged(key) in self.all.places:
                made[UNET + key] = made[averaged(key)]
        for key in made:
            if original := original_of(key, made):
                made[key] = made[original]
        return made
