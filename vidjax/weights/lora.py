"""Reads and writes low-rank adapters in one safetensors file, in the layout of `diffusers` or of kohya's scripts."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vidjax.errors import InputError
from vidjax.models.lora import Tensors, layers_of
from vidjax.runtime.limits import from_json
from vidjax.weights import convert, stable_video
from vidjax.weights.clip import TEXT, TEXT_KEYS
from vidjax.weights.convert import Rules, rename
from vidjax.weights.diffusers import ANIMATEDIFF, MODELSCOPE, TUNE_A_VIDEO, unet, unet_keys
from vidjax.weights.tensors import read

FILE = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"  # a JSON of peft's LoraConfig, its keys with the model's name in front
# How the ends of a pair have been called, all to peft's present names.
ENDS: Rules = [
    (r"^(module\.)?(?=(down_blocks|mid_block|up_blocks)\.)", "unet."),  # AnimateDiff's own layout
    (r"\.temporal_transformer\.", "."),
    (r"\.attention_blocks\.([01])\.", lambda m: f".attn{int(m[1]) + 1}."),
    (r"\.processor\.to_out_lora\.", ".to_out.0.lora."),
    (r"\.processor\.(to_\w+)_lora\.", r".\1.lora."),
    (r"\.lora(\.|_linear_layer\.)down\.weight$", ".lora_A.weight"),
    (r"\.lora(\.|_linear_layer\.)up\.weight$", ".lora_B.weight"),
]
# kohya's keys to those of diffusers: there all dots of a layer's name are underscores.
KOHYA_FILE = "lora.safetensors"
KOHYA: Rules = [
    (r"^lora_unet_", "unet."),
    (r"^lora_te_text_model_encoder_", "text_encoder.text_model.encoder."),
    (r"(blocks|attentions|resnets|modules|samplers|convs|layers|net|to_out)_(\d+)(?=[_.])", r"\1.\2"),
    (r"\.(\d+)_", r".\1."),
    (r"_to_(?=[qkvo])", ".to_"),
    (r"\.(mid_block|time_embedding|transformer_in|ff|ff_in|self_attn|mlp)_(?!emb)", r".\1."),
    (r"\.lora_down\.weight$", ".lora_A.weight"),
    (r"\.lora_up\.weight$", ".lora_B.weight"),
]
ENDS_NOW, KOHYA_ENDS = ("lora_A", "lora_B"), ("lora_down", "lora_up")
NAMES = {"lora_A.weight": "lora_down", "lora_B.weight": "lora_up", "alpha": "lora_alpha"}


def module_key(layer: str, blocks_per_level: int) -> str:
    """Converts the path of a layer of the U-Net to its name in `diffusers`."""
    return rename(f"{layer}.", unet_keys(blocks_per_level)).removesuffix(".")


def save(
    folder: str | Path,
    tensors: Tensors,
    blocks_per_level: int,
    family: Rules = (),
    *,
    linear_projection: bool = False,
    kohya: bool = False,
) -> Path:
    """Writes the adapters of a model (`models.lora.lora_tensors`: paths in `unet.` and `text.encoder.`), in fp32.

    `family` renames what a family calls its own layers, such as `diffusers.ANIMATEDIFF_KEYS`; `linear_projection` is
    `use_linear_projection` of the model there (Stable Diffusion 2: True), else projections of transformers are 1x1
    convolutions. alpha / rank goes into the second matrix, so that every reader applies it; in kohya's layout alpha is
    a tensor of its own. Raises InputError for a layer that `diffusers` has no name for.
    """
    out = {}
    convolutions = r"\.conv_shortcut$" if linear_projection else r"\.conv_shortcut$|\.attentions\.\d+\.proj_(in|out)$"
    for layer in layers_of(tensors):
        down, up = (np.asarray(tensors[f"{layer}.{end}"], np.float32) for end in ("lora_down", "lora_up"))
        alpha = tensors.get(f"{layer}.lora_alpha", down.shape[1])
        key = _key(layer, blocks_per_level, family)
        scale = 1.0 if kohya else alpha / down.shape[1]
        name = kohya_key(key) if kohya else key
        for end, matrix in zip(KOHYA_ENDS if kohya else ENDS_NOW, (down, np.float32(scale) * up)):
            kernel = matrix.T[..., None, None] if re.search(convolutions, key) else matrix.T
            out[f"{name}.{end}.weight"] = np.ascontiguousarray(kernel)
        if kohya:
            out[f"{name}.alpha"] = np.array(alpha, np.float32)
    path = Path(folder) / (KOHYA_FILE if kohya else FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(out, path, metadata={"format": "pt"})
    return path


def kohya_key(key: str) -> str:
    """Converts the name of a layer in a pipeline of `diffusers` to kohya's."""
    part, _, layer = key.partition(".")
    return f"lora_{'te' if part == 'text_encoder' else part}_{layer.replace('.', '_')}"


def _key(layer: str, blocks_per_level: int, family: Rules) -> str:
    """The name of a layer of the whole model in a pipeline of `diffusers`. Raises InputError if it has none."""
    if layer.startswith("text.encoder.layers."):
        return f"text_encoder.{rename(layer.removeprefix('text.encoder.'), TEXT_KEYS)}"
    key = rename(module_key(layer.removeprefix("unet."), blocks_per_level), family)
    if not re.match(r"(down_blocks|up_blocks|mid_block|transformer_in|time_embedding|add_embedding)\.", key):
        raise InputError(
            f"LoRA layer {layer} is not one of a U-Net or a text encoder in diffusers; adapt other layers or merge it"
        )
    return f"unet.{key}"


def load(path: str | Path, blocks_per_level: int) -> dict[str, np.ndarray | float]:
    """Reads the adapters of a file, or of the one in a folder, for `models.lora.merge_loras`: by path in the model.

    Of any family's U-Net and of CLIP's text encoder. Reads `lora_A` and `lora_B`, the older `lora.down` and `lora.up`,
    those of attention processors, and kohya's keys; alpha from keys, else from the metadata, else the rank. Raises
    InputError if the file cannot be read, is not whole, or has more than adapters of linear layers.
    """
    path = Path(path)
    tensors, metadata = _read(path / FILE if path.is_dir() else path)
    parts = {
        "unet": ("unet.", [*TUNE_A_VIDEO, *ANIMATEDIFF, *MODELSCOPE, *stable_video.UNET, *unet(blocks_per_level)]),
        "text_encoder": ("text.encoder.", TEXT),
    }
    out: dict[str, np.ndarray | float] = {}
    for full, value in tensors.items():
        key = rename(full, KOHYA if full.startswith("lora_") else ENDS)
        found = re.fullmatch(r"(unet|text_encoder)\.(.+)\.(lora_A\.weight|lora_B\.weight|alpha)", key)
        if found is None:
            raise InputError(f"{path} has {full}, {explain_foreign(full, tensors)}")
        (part, module, end), (prefix, rules) = found.groups(), parts[found[1]]
        layer = prefix + rename(f"{module}.", rules).rstrip(".")
        name = NAMES[end]
        convert.check_finite(value, f"{path}: {full}")
        out[f"{layer}.{name}"] = _scalar(value, full, path) if name == "lora_alpha" else _matrix(value, full, path)
        if name == "lora_down" and f"{part}.lora_alpha" in metadata:
            out.setdefault(f"{layer}.lora_alpha", _alpha(metadata, part, module, path))
    layers_of(out, str(path))
    return out


def explain_foreign(key: str, keys: Iterable[str]) -> str:
    """Says what a key is that `diffusers` does not have, among these others, and what to do."""
    if key.startswith("lora_"):
        return "which of kohya's keys is none of a U-Net or a text encoder of Stable Diffusion 1 or 2"
    if not any(key.startswith(("unet.", "text_encoder.")) for key in keys):
        return "which is no adapter of a U-Net or a text encoder in diffusers' layout: keys begin with unet. there"
    return "which is no adapter of a U-Net or a text encoder; take it out of the file"


def _read(path: Path) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} can't be read as safetensors ({error}); give a LoRA of diffusers") from None
    try:
        config = dict(from_json(metadata.get(METADATA, "{}")))
    except (ValueError, TypeError):
        raise InputError(f"{path} has metadata that are no JSON of peft's; give a LoRA of diffusers") from None
    return read(path), config


def _scalar(value: np.ndarray, key: str, path: Path) -> float:
    if value.size != 1:
        raise InputError(f"{path}: {key} has shape {value.shape}; it should be one number")
    return float(value.item())


def _matrix(value: np.ndarray, key: str, path: Path) -> np.ndarray:
    """[out, in] of a linear layer, or [out, in, 1, 1] of a convolution, as [in, out]."""
    if not value.size:
        raise InputError(f"{path}: {key} has shape {value.shape}: an adapter of rank 0 adapts nothing")
    if value.ndim < 2 or value.size != value.shape[0] * value.shape[1]:
        raise InputError(f"{path}: {key} has shape {value.shape}; only adapters of linear layers are read")
    return value.reshape(value.shape[:2]).T


def _alpha(metadata: Mapping[str, Any], part: str, module: str, path: Path) -> float:
    """Of one module: the pattern that names it, by the end of its name, or the common one. The scale is alpha / rank.

    peft also knows regular expressions here, which `diffusers` does not write; one can be made to take for ever.
    """
    patterns = metadata.get(f"{part}.alpha_pattern") or {}
    if not isinstance(patterns, dict) or any(not re.fullmatch(r"[\w.]+", name) for name in patterns):
        raise InputError(f"{path} has the alpha_pattern {str(patterns)[:99]}; only names of layers are read")
    own = [value for name, value in patterns.items() if f".{module}".endswith(f".{name}")]
    alpha = (own or [metadata[f"{part}.lora_alpha"]])[0]
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise InputError(f"{path} has {str(alpha)[:99]} as the alpha of {module}; it should be a number")
    return float(alpha)
