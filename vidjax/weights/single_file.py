"""Checkpoints in one file, in the layout of Stable Diffusion's own code, read as if they were a folder of diffusers.

The file has the U-Net, the autoencoder and the text encoder under their training run's names; what a folder says in its
configs is read off the shapes. CLIP's words are in no such file: `tokenizer/` lies beside it.
"""

import dataclasses
import itertools
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from vidjax.errors import InputError
from vidjax.models.clip import ClipTextConfig
from vidjax.runtime.storage import write_json
from vidjax.weights import open_clip
from vidjax.weights.convert import Rules, rename
from vidjax.weights.diffusers import unet, unet_keys
from vidjax.weights.diffusers_autoencoder import AUTOENCODER_KEYS
from vidjax.weights.folder import INDEX, clip_tokenizer
from vidjax.weights.open_clip import TRANSPOSED, Names
from vidjax.weights.tensors import Tensors, read, shapes_under

UNET, AUTOENCODER, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."  # what keys begin with
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
HEAD = 64  # features of a head of OpenCLIP's text encoders and of the U-Nets that read them

# Keys of a U-Net to parameter paths; the schedule is flat there, too, behind conv_in.
LDM: Rules = [
    (r"^input_blocks\.0\.0\.", "conv_in."),
    (r"^input_blocks\.(\d+)\.", lambda m: f"down.{int(m[1]) - 1}."),
    (r"^output_blocks\.", "up."),
    (r"^middle_block\.2\.", "mid.1.0."),
    (r"^middle_block\.", "mid.0."),
    (r"^(down\.\d+)\.0\.op\.", r"\1.downsample.conv."),
    (r"^(up\.\d+)\.\d\.conv\.", r"\1.upsample.conv."),
    (r"^((?:down|up|mid)\.\d+)\.0\.", r"\1.resnet."),
    (r"^((?:down|up|mid)\.\d+)\.1\.", r"\1.attention."),
    (r"\.in_layers\.0\.", ".norm1."),
    (r"\.in_layers\.2\.", ".conv1."),
    (r"\.emb_layers\.1\.", ".time_emb_proj."),
    (r"\.out_layers\.0\.", ".norm2."),
    (r"\.out_layers\.3\.", ".conv2."),
    (r"\.skip_connection\.", ".conv_shortcut."),
    (r"^time_embed\.0\.", "time_embedding.linear_1."),
    (r"^time_embed\.2\.", "time_embedding.linear_2."),
    (r"^out\.0\.", "conv_norm_out."),
    (r"^out\.2\.", "conv_out."),
]


def autoencoder_rules(levels: int) -> Rules:
    """Keys of an autoencoder of so many levels to parameter paths; its decoder counts them from the last."""
    return [
        (r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up.{levels - 1 - int(m[1])}."),
        (r"\.block\.(\d+)\.", r".resnet_\1."),
        (r"\.mid\.block_(\d)\.", lambda m: f".mid.resnet_{int(m[1]) - 1}."),
        (r"\.nin_shortcut\.", ".conv_shortcut."),
        (r"\.mid\.attn_1\.", ".mid.attention.layer."),
        (r"\.layer\.([qkv])\.", r".layer.to_\1."),
        (r"\.layer\.proj_out\.", ".layer.to_out."),
    ]


def levels(shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[int], int]:
    """(features of each level, residual blocks in one) of a U-Net, by the shapes of its tensors."""
    number = lambda key: int(key.split(".")[1])
    blocks = {
        number(key): shape[0] for key, shape in shapes.items() if re.match(r"input_.*\.out_layers\.3\.weight", key)
    }
    downs = sorted(number(key) for key in shapes if re.match(r"input_.*\.0\.op\.weight", key))
    ends = [*downs, max(blocks) + 1]
    return [blocks[end - 1] for end in ends], ends[0] - 1


class Renamed(Mapping[str, np.ndarray]):
    """Tensors of another mapping under other keys, some of them one of three parts of theirs or transposed."""

    def __init__(self, tensors: Mapping[str, np.ndarray], keys: Names):
        self.tensors, self.keys_ = tensors, dict(keys)

    def __getitem__(self, key: str) -> np.ndarray:
        own, part = self.keys_[key]
        value = self.tensors[own]
        if part == TRANSPOSED:
            return value.T
        return value if part is None else value.reshape(3, -1, *value.shape[1:])[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys_)

    def __len__(self) -> int:
        return len(self.keys_)


@dataclasses.dataclass(frozen=True)
class SingleFile:
    """A checkpoint of Stable Diffusion 1 or 2 in one safetensors file. Raises InputError for any other."""

    path: Path
    all: Tensors = dataclasses.field(init=False)

    needs = (UNET, AUTOENCODER, TEXT)
    what = "a checkpoint of Stable Diffusion 1 or 2"

    def __post_init__(self):
        object.__setattr__(self, "path", Path(self.path))
        object.__setattr__(self, "all", read(self.path))
        for part in self.needs:
            if not any(key.startswith(part) for key in self.all):
                raise InputError(
                    f"{self.path} has no keys {part}* but {min(self.all, default='none')}: "
                    f"name {self.what}, or a folder in the layout of diffusers"
                )

    @property
    def caveat(self) -> str:
        """What the file does not say and is assumed, for people; "" if there is nothing."""
        if not self._unet()["use_linear_projection"]:
            return ""
        return (
            "it is taken for Stable Diffusion 2 at 768x768, which predicts v; if its videos are noise, it is the "
            "one at 512x512: take that as a folder of diffusers"
        )

    def config(self, part: str) -> dict[str, Any]:
        """What config.json of that part would say in a folder, as far as shapes tell it. Raises InputError."""
        try:
            return self._readers()[part]()
        except (LookupError, ValueError) as error:
            raise InputError(
                f"{self.path}: keys of its {part} are missing or renamed ({error}): is it {self.what}?"
            ) from None

    def _readers(self) -> dict[str, Callable[[], dict[str, Any]]]:
        return {
            "unet": self._unet,
            "vae": self._autoencoder,
            "text_encoder": self._text,
            "scheduler": self._scheduler,
        }

    def tensors(self, part: str) -> Mapping[str, np.ndarray]:
        """The weights of a part under diffusers' and transformers' keys."""
        return Renamed(self.all, self.names(part))

    def names(self, part: str) -> Names:
        """The keys of a part in a folder, and what of the file each is."""
        return {"unet": self._unet_keys, "vae": self._vae_keys}.get(part, self._text_keys)()

    def write(self, parts: Mapping[str, Mapping[str, np.ndarray]], out: Path) -> None:
        """Writes the file again as `out`, in its own dtypes, with these tensors under a folder's keys in place of its
        parts. Raises InputError for one that it has no place for."""
        made = dict(self.all)
        for part, tensors in parts.items():
            names, pieces = self.names(part), dict[str, list[np.ndarray]]()
            if extra := sorted(tensors.keys() - names.keys()):
                raise InputError(f"{self.path} has no place for {extra[0]} of its {part}; take --format=diffusers")
            for key, (own, how) in names.items():
                pieces.setdefault(own, []).append(tensors[key].T if how == TRANSPOSED else tensors[key])
            for own, values in pieces.items():
                place = self.all.places[own]
                made[own] = np.concatenate(values).reshape(place.shape).astype(place.dtype)
        save_file({key: np.ascontiguousarray(value) for key, value in made.items()}, out, {"format": "pt"})

    def tokenizer(self, text: ClipTextConfig) -> Callable[[str], np.ndarray]:
        """CLIP's, from the folder `tokenizer` beside the file; for OpenCLIP's encoder with zeros after the end, as its
        own program pads."""
        folder = self.path.parent / "tokenizer"
        if not folder.is_dir():
            raise InputError(
                f"{self.path} has no words, and there is no {folder}: "
                "put the tokenizer/ of any Stable Diffusion (vocab.json, merges.txt) there"
            )
        tokenize = clip_tokenizer(folder, text)
        if not any(key.startswith(OPEN_CLIP) for key in self.all):
            return tokenize
        end = tokenize("")[1]

        def padded_with_zeros(text: str) -> np.ndarray:
            ids = tokenize(text)
            return np.where(np.arange(len(ids)) > np.argmax(ids == end), 0, ids)

        return padded_with_zeros

    def copy_configs(self, out: Path) -> None:
        """Writes what a folder of diffusers has beside its weights."""
        for part in ("unet", "vae", "text_encoder", "scheduler"):
            (out / part).mkdir(parents=True)
            name = "scheduler_config.json" if part == "scheduler" else "config.json"
            write_json(out / part / name, self.config(part))
        shutil.copytree(self.path.parent / "tokenizer", out / "tokenizer")
        classes = {
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", self.config("scheduler")["_class_name"]],
        }
        nothing = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
        write_json(out / INDEX, {"_class_name": "StableDiffusionPipeline", **classes, **nothing})

    # What is where in the file.

    def _own(self, prefix: str) -> dict[str, tuple[int, ...]]:
        return shapes_under(self.all.places, prefix)

    def _unet(self) -> dict[str, Any]:
        shapes = self._own(UNET)
        channels, n = levels(shapes)
        attends = [f"input_blocks.{level * (n + 1) + 1}.1.norm.weight" in shapes for level in range(len(channels))]
        first = f"input_blocks.{attends.index(True) * (n + 1) + 1}.1."
        tokens = shapes[f"{first}transformer_blocks.0.attn2.to_k.weight"][1]
        linear = len(shapes[f"{first}proj_in.weight"]) == 2  # since Stable Diffusion 2
        names = ["CrossAttn{}Block2D" if yes else "{}Block2D" for yes in attends]
        return {
            "_class_name": "UNet2DConditionModel",
            "in_channels": shapes["input_blocks.0.0.weight"][1],
            "out_channels": shapes["out.2.weight"][0],
            "block_out_channels": channels,
            "layers_per_block": n,
            "down_block_types": [name.format("Down") for name in names],
            "up_block_types": [name.format("Up") for name in names[::-1]],
            "cross_attention_dim": tokens,
            "attention_head_dim": [c // HEAD for c in channels] if linear else 8,
            "use_linear_projection": linear,
            "sample_size": 96 if linear else 64,
        }

    def _unet_keys(self) -> dict[str, tuple[str, None]]:
        _, n = levels(self._own(UNET))
        name = lambda key: rename(rename(key, [*LDM, *unet(n)]), unet_keys(n))
        return {name(key): (UNET + key, None) for key in self._own(UNET)}

    def _autoencoder(self) -> dict[str, Any]:
        shapes = self._own(AUTOENCODER)
        levels = 1 + max(int(key.split(".")[2]) for key in shapes if key.startswith("encoder.down."))
        blocks = 1 + max(int(key.split(".")[4]) for key in shapes if key.startswith("encoder.down.0.block."))
        return {
            "_class_name": "AutoencoderKL",
            "in_channels": shapes["encoder.conv_in.weight"][1],
            "out_channels": shapes["decoder.conv_out.weight"][0],
            "latent_channels": shapes["post_quant_conv.weight"][0],
            "block_out_channels": [shapes[f"encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)],
            "layers_per_block": blocks,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "scaling_factor": 0.18215,
        }

    def _vae_keys(self) -> dict[str, tuple[str, None]]:
        rules = autoencoder_rules(len(self._autoencoder()["block_out_channels"]))
        name = lambda key: rename(rename(key, rules), AUTOENCODER_KEYS)
        kept = (key for key in self._own(AUTOENCODER) if not key.startswith("loss."))
        return {name(key): (AUTOENCODER + key, None) for key in kept}

    def _text(self) -> dict[str, Any]:
        by_open_clip = any(key.startswith(OPEN_CLIP) for key in self.all)
        shapes = self._own(OPEN_CLIP if by_open_clip else CLIP)
        keys = {new: shapes[old] for new, (old, _) in self._bare_text_keys(by_open_clip, shapes).items()}
        dim = keys["text_model.final_layer_norm.weight"][0]
        layers = 1 + max(int(m[1]) for key in keys if (m := re.match(r"text_model\.encoder\.layers\.(\d+)", key)))
        return {
            "architectures": ["CLIPTextModel"],
            "hidden_size": dim,
            "intermediate_size": keys["text_model.encoder.layers.0.mlp.fc1.weight"][0],
            "num_hidden_layers": layers,
            "num_attention_heads": dim // HEAD,
            "hidden_act": "gelu" if by_open_clip else "quick_gelu",
            "vocab_size": keys["text_model.embeddings.token_embedding.weight"][0],
            "max_position_embeddings": keys["text_model.embeddings.position_embedding.weight"][0],
        }

    def _text_keys(self) -> dict[str, tuple[str, int | None]]:
        by_open_clip = any(key.startswith(OPEN_CLIP) for key in self.all)
        prefix = OPEN_CLIP if by_open_clip else CLIP
        found = self._bare_text_keys(by_open_clip, self._own(prefix))
        return {new: (prefix + old, part) for new, (old, part) in found.items()}

    @staticmethod
    def _bare_text_keys(by_open_clip: bool, keys: Mapping[str, Any]) -> dict[str, tuple[str, int | None]]:
        """The keys of transformers, each with the file's and, where OpenCLIP has three in one, which. OpenCLIP's
        last layer and its projection are not read: Stable Diffusion 2 takes what goes into that layer."""
        if not by_open_clip:
            return {key: (key, None) for key in keys if not key.endswith("position_ids")}
        last = max(int(m[1]) for key in keys if (m := re.match(r"transformer\.resblocks\.(\d+)", key)))
        unread = re.compile(rf"transformer\.resblocks\.{last}\.|logit_scale|text_projection|attn_mask")
        return open_clip.part_names(itertools.filterfalse(unread.match, keys), open_clip.TEXT)

    def _scheduler(self) -> dict[str, Any]:
        """That of Stable Diffusion 1, and of 2 at 768x768, which predicts v."""
        return {
            "_class_name": "PNDMScheduler" if not self._unet()["use_linear_projection"] else "DDIMScheduler",
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "num_train_timesteps": 1000,
            "steps_offset": 1,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "clip_sample": False,
            "prediction_type": "v_prediction" if self._unet()["use_linear_projection"] else "epsilon",
        }
