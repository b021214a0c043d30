"""Low-rank adapters in the layout of `diffusers`, out and in: one safetensors file that its pipelines load."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vidjax.errors import InputError
from vidjax.models.lora import Tensors, layers_of
from vidjax.weights.convert import Rules, rename
from vidjax.weights.diffusers import unet, unet_keys

FILE = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"  # a JSON of peft's LoraConfig, its keys with the model's name in front
# How the ends of a pair have been called, all to peft's present names.
ENDS: Rules = [
    (r"\.processor\.to_out_lora\.", ".to_out.0.lora."),
    (r"\.processor\.(to_\w+)_lora\.", r".\1.lora."),
    (r"\.lora(\.|_linear_layer\.)down\.weight$", ".lora_A.weight"),
    (r"\.lora(\.|_linear_layer\.)up\.weight$", ".lora_B.weight"),
]
NAMES = {"lora_A.weight": "lora_down", "lora_B.weight": "lora_up", "alpha": "lora_alpha"}


def module_key(layer: str, blocks_per_level: int) -> str:
    """The name in `diffusers` of a layer of the U-Net."""
    return rename(f"{layer}.", unet_keys(blocks_per_level)).removesuffix(".")


def save(
    folder: str | Path, tensors: Tensors, blocks_per_level: int, family: Rules = (), *, linear_projection: bool = False
) -> Path:
    """Writes the adapters of a U-Net (`models.lora.lora_tensors`, its paths with or without `unet.`), in fp32.

    `family` renames what a family calls its own layers, such as `diffusers.ANIMATEDIFF_KEYS`; `linear_projection` is
    `use_linear_projection` of the model there (Stable Diffusion 2: True), else projections of transformers are 1x1
    convolutions. alpha / rank goes into the second matrix, so that every reader applies it. Raises InputError for a
    layer that `diffusers` has no name for.
    """
    out = {}
    convolutions = r"\.conv_shortcut$" if linear_projection else r"\.conv_shortcut$|\.attentions\.\d+\.proj_(in|out)$"
    for layer in layers_of(tensors):
        down, up = (np.asarray(tensors[f"{layer}.{end}"], np.float32) for end in ("lora_down", "lora_up"))
        scale = tensors.get(f"{layer}.lora_alpha", down.shape[1]) / down.shape[1]
        key = rename(module_key(layer.removeprefix("unet."), blocks_per_level), family)
        if not re.match(r"(down_blocks|up_blocks|mid_block|transformer_in|time_embedding|add_embedding)\.", key):
            raise InputError(f"LoRA layer {layer} is not one of a U-Net in diffusers; adapt other layers or merge it")
        for end, matrix in (("lora_A", down), ("lora_B", np.float32(scale) * up)):
            kernel = matrix.T[..., None, None] if re.search(convolutions, key) else matrix.T
            out[f"unet.{key}.{end}.weight"] = np.ascontiguousarray(kernel)
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(out, path, metadata={"format": "pt"})
    return path


def load(
    path: str | Path, blocks_per_level: int, family: Rules = (), prefix: str = ""
) -> dict[str, np.ndarray | float]:
    """The adapters of a file, or of the one in a folder, for `models.lora.merge_loras`: paths, each after `prefix`.

    `family`: rules of `weights.diffusers` such as its ANIMATEDIFF. Reads `lora_A` and `lora_B`, the older `lora.down`
    and `lora.up` and those of attention processors; alpha from keys, else from the metadata, else the rank. Raises
    InputError if the file cannot be read, is not whole, or has more than the U-Net's adapters.
    """
    path = Path(path)
    tensors, metadata = _read(path / FILE if path.is_dir() else path)
    rules = [*family, *unet(blocks_per_level)]
    out: dict[str, np.ndarray | float] = {}
    for full, value in tensors.items():
        key, found = rename(full, ENDS), None
        if key.startswith("unet."):
            found = re.fullmatch(r"unet\.(.+)\.(lora_A\.weight|lora_B\.weight|alpha)", key)
        if found is None:
            raise InputError(f"{path} has {full}, which is no adapter of a U-Net; take it out of the file")
        layer = prefix + rename(f"{found[1]}.", rules).rstrip(".")
        name = NAMES[found[2]]
        out[f"{layer}.{name}"] = float(value) if name == "lora_alpha" else _matrix(value)
        if name == "lora_down" and "unet.lora_alpha" in metadata:
            out.setdefault(f"{layer}.lora_alpha", _alpha(metadata, found[1]))
    layers_of(out, str(path))
    return out


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        with safe_open(path, framework="numpy") as file:
            tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} can't be read as safetensors ({error}); give a LoRA of diffusers") from None
    return tensors, json.loads(metadata.get(METADATA, "{}"))


def _matrix(value: np.ndarray) -> np.ndarray:
    """[out, in] of a linear layer, or [out, in, 1, 1] of a convolution, as [in, out]."""
    return value.reshape(value.shape[:2]).T


def _alpha(metadata: Mapping[str, Any], module: str) -> float:
    """Of one module: the pattern that names it, or the common one. The scale is alpha / rank."""
    patterns = metadata.get("unet.alpha_pattern") or {}
    own = [value for name, value in patterns.items() if re.search(rf"(^|\.){name}$", module)]
    return float((own or [metadata["unet.lora_alpha"]])[0])
