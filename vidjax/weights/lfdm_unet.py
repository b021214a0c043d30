"""Reads and writes the U-Net of LFDM's released diffusion files, `{diffusion, optimizer_diff, example}`: the keys of
video-diffusion-pytorch's, under `denoise_fn.`, beside the schedule's tables.

A file is read as safetensors (`vidjax.convert FILE`). The flow autoencoder is in one of its own (`weights.lfdm`). The
condition is the mean of BERT's last layer (bert-base-cased) over the tokens of a class's name but [CLS]; whoever reads
a file has put these into it, one row per class in the data set's order, as `VECTORS`.
"""

import re
from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike

from vidjax.errors import InputError
from vidjax.models.flow_unet import FlowUNetConfig
from vidjax.weights import convert
from vidjax.weights.convert import Rules

PREFIX = r"^(module\.)?(diffusion\.)?(module\.)?denoise_fn\.(module\.)?"
FREQUENCIES = "init_temporal_attn.fn.fn.fn.rotary_emb.freqs"  # and the same of each layer over time
NULL = "null_cond_emb"  # NATOPS's learned condition where there is none; the others': zeros, in no file
VECTORS = "class_vectors"
KEYS: Rules = [
    (PREFIX, ""),
    (rf"^{re.escape(FREQUENCIES)}$", "frequencies"),
    (r"^time_rel_pos_bias\.relative_attention_bias\.", "time_bias."),
    (r"^time_mlp\.(1|3)\.", lambda m: f"time_embedding.linear_{(int(m[1]) + 1) // 2}."),
    (r"^init_conv\.", "conv_in."),
    (r"^init_temporal_attn\.", "attn_in."),
    (r"^mid_block([12])\.", lambda m: f"mid.resnets.{int(m[1]) - 1}."),
    (r"^mid_(spatial|temporal)_attn\.", lambda m: f"mid.{OVER[m[1]]}."),
    (r"^(down|up)s\.(\d+)\.([01])\.", r"\1.\2.resnets.\3."),
    (r"^(down|up)s\.(\d+)\.([23])\.", lambda m: f"{m[1]}.{m[2]}.{'attn1' if m[3] == '2' else 'attn_temp'}."),
    (r"^(down|up)s\.(\d+)\.4\.(1\.)?", lambda m: f"{m[1]}sample.{m[2]}.{'conv.' if m[3] else ''}"),
    (r"^(final_conv|occlusion_map)\.([01])\.", lambda m: f"outputs.{OUTPUTS.index(m[1])}.{HEAD[int(m[2])]}."),
    (r"\.fn\.norm\.gamma$", ".norm.weight"),
    (r"\.(fn\.)+to_", ".to_"),
    (r"\.block([12])\.(proj|norm)\.", lambda m: f".{'conv' if m[2] == 'proj' else 'norm'}{m[1]}."),
    (r"\.mlp\.1\.", ".time_emb_proj."),
    (r"\.res_conv\.", ".conv_shortcut."),
]
OVER, OUTPUTS, HEAD = dict(spatial="attn1", temporal="attn_temp"), ("final_conv", "occlusion_map"), ("resnet", "conv")
# The schedule's tables, and all but the first copy of the rotation's frequencies.
IGNORED = rf"^(?!.*denoise_fn\.)|{NULL}$|(downs|ups|mid_temporal_attn)\..*rotary_emb\.freqs$"


def flip(kernel: np.ndarray) -> np.ndarray:
    """Turns a transposed convolution's kernel into that of a convolution over what zeros were put into, and back."""
    return kernel.swapaxes(0, 1)[..., ::-1, ::-1]


def is_transposed(key: str, value: np.ndarray) -> bool:
    """Whether it is the kernel of a transposed convolution; NATOPS's file has none."""
    return value.ndim == 5 and bool(re.search(r"(^|\.)ups\.\d+\.4\.weight$", key))


def config_of(tensors: Mapping[str, np.ndarray], name: str) -> FlowUNetConfig:
    """Finds the U-Net's config from the shapes in a file of this name; heads are 32 wide, as in every file. Raises
    InputError if they are another model's."""
    shapes = {re.sub(PREFIX, "", key): value.shape for key, value in tensors.items() if re.search(PREFIX, key)}
    levels = sum(bool(re.fullmatch(r"downs\.\d+\.0\.block1\.proj\.weight", key)) for key in shapes)
    wanted = ["init_conv.weight", "time_rel_pos_bias.relative_attention_bias.weight", "downs.0.0.mlp.1.weight"]
    wanted += [f"{output}.1.weight" for output in OUTPUTS]
    if missing := [key for key in wanted if key not in shapes]:
        raise InputError(f"{name} has no key *denoise_fn.{missing[0]}: it is no diffusion of LFDM's")
    first, bias, mlp, *outputs = (shapes[key] for key in wanted)
    width = mlp[1] - 4 * first[0]
    return FlowUNetConfig(
        in_channels=first[1],
        out_channels=sum(shape[0] for shape in outputs),
        channels=tuple(shapes[f"downs.{i}.0.block1.proj.weight"][0] for i in range(levels)),
        heads=bias[1],
        vector_dim=width or None,
        transposed="ups.0.4.1.weight" not in shapes,
    )


def class_vectors(tensors: Mapping[str, np.ndarray], shape: tuple[int, ...], name: str) -> np.ndarray:
    """Makes the table of conditions, one of each class and last the one for none. Raises InputError if a file of this
    name lacks it, or it is not of this shape."""
    vectors = tensors.get(VECTORS)
    if vectors is None or (len(vectors) + 1, *vectors.shape[1:]) != shape:
        found = "has none" if vectors is None else f"has {vectors.shape}"
        raise InputError(
            f"{name} lacks the tensor {VECTORS} of shape {(shape[0] - 1, *shape[1:])}, it {found}: add BERT's vector "
            "for each class, as docs/moving_pictures.md says"
        )
    null = [value for key, value in tensors.items() if key.endswith(NULL)]
    return np.concatenate([vectors, *(null or [np.zeros_like(vectors[:1])])])


def parameters(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Finds the array of each parameter of a FlowUNet. Raises InputError for what does not fit."""
    read = {}
    for key, value in tensors.items():
        if not re.search(IGNORED, key):
            value = flip(value) if is_transposed(key, value) else value
            read[key] = value.reshape(-1) if key.endswith(".gamma") else value
    return convert.fit(shapes, read, KEYS)


def tensors(params: Mapping[str, ArrayLike], source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Writes a FlowUNet's parameters under the keys of a file of this config, the one that they came from or another;
    what of it is no parameter stays. Raises InputError for a key without a parameter."""
    rules = [(r"^.*rotary_emb\.freqs$", "frequencies"), *KEYS]
    out = convert.write_back(params, source, rules, rf"^(?!.*denoise_fn\.)|{NULL}$")
    return {
        key: np.ascontiguousarray(flip(value)) if "denoise_fn." in key and is_transposed(key, value) else value
        for key, value in out.items()
    }
