"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) on the linear layers of any model: put in, taken out, merged."""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vidjax.errors import InputError
from vidjax.models.initial import constant, uniform_by_fan

Tensors = Mapping[str, Array | np.ndarray | float | int]  # "....to_q.lora_down", ".lora_up" and ".lora_alpha" -> array


class LoRALinear(nnx.Module):
    """y = x W + b + (alpha / rank) (x down) up, eq. 3; `up` starts at zero, so that y starts as the base layer's.

    It takes over `kernel` and `bias` of the layer whose place it takes: their paths stay, `lora_down` and `lora_up`
    stand beside them. W may be bf16 while they are fp32.
    """

    def __init__(self, base: nnx.Linear, rank: int, alpha: float | int, *, rngs: nnx.Rngs):
        (cin, cout), init = base.kernel.shape, uniform_by_fan(1 / 3)
        if not 1 <= rank <= min(cin, cout):
            raise InputError(f"rank={rank} does not fit a {cin} x {cout} layer; take 1 to {min(cin, cout)}")
        self.kernel, self.bias = base.kernel, nnx.data(base.bias)
        self.lora_down = nnx.Param(init(rngs.params(), (cin, rank)))
        self.lora_up = nnx.Param(constant(0, rank, cout))
        self.alpha = float(alpha)

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s d"]:
        y = x @ self.kernel[...]
        y = y if self.bias is None else y + self.bias[...]
        scale = self.alpha / self.lora_down.shape[1]
        return y + scale * ((x @ self.lora_down[...]) @ self.lora_up[...])


def add_lora(
    model: nnx.Module, targets: str, rank: int, alpha: float | int | None = None, *, rngs: nnx.Rngs
) -> list[str]:
    """Puts a LoRALinear in place of each linear layer whose path the regular expression `targets` finds; their paths.

    `alpha` is the rank unless given: a scale of 1. Raises InputError if there is no such layer, or none that large.
    """
    modules = dict(nnx.iter_modules(model))
    linear = {".".join(map(str, path)): path for path, module in modules.items() if isinstance(module, nnx.Linear)}
    found = [name for name in sorted(linear) if re.search(targets, name)]
    if not found:
        ends = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        example = f", such as {min(linear)}; their last names are {ends}" if linear else ""
        raise InputError(f"LoRA targets {targets!r} find none of {len(linear)} linear layers{example}")
    for name in found:
        *parent, last = linear[name]
        layer = LoRALinear(modules[linear[name]], rank, rank if alpha is None else alpha, rngs=rngs)
        if isinstance(last, int):
            modules[tuple(parent)][last] = layer
        else:
            setattr(modules[tuple(parent)], last, layer)
    return found


def lora_tensors(model: nnx.Module) -> dict[str, Array | float]:
    """The adapters of a model by path: `lora_down` [in, rank], `lora_up` [rank, out] and the number `lora_alpha`."""
    out = {}
    for path, module in nnx.iter_modules(model):
        if isinstance(module, LoRALinear):
            name = ".".join(map(str, path))
            out |= {f"{name}.lora_down": module.lora_down[...], f"{name}.lora_up": module.lora_up[...]}
            out[f"{name}.lora_alpha"] = module.alpha
    return out


def merge_loras(params: Mapping[str, Array], loras: Mapping[str, tuple[Tensors, float | int]]) -> dict[str, Array]:
    """W + sum of weight (alpha / rank) down up over `loras`, name -> (tensors, weight): the model without adapters.

    Summed in fp32 and stored in the dtype of W; without `lora_alpha` a scale is 1. Raises InputError where a LoRA does
    not fit the parameters, with the path and both shapes.
    """
    out = dict(params)
    sums: dict[str, Array] = {}
    for name, (tensors, weight) in loras.items():
        for layer in layers_of(tensors, name):
            path = f"{layer}.kernel"
            down, up = (jnp.asarray(tensors[f"{layer}.{end}"], jnp.float32) for end in ("lora_down", "lora_up"))
            if path not in out:
                raise InputError(
                    f"LoRA {name!r} has {layer}, the model has no {path}: it belongs to another model; leave it out"
                )
            shape = tuple(out[path].shape)
            if (down.shape[0], up.shape[1]) != shape or down.shape[1] != up.shape[0]:
                raise InputError(
                    f"LoRA {name!r} is {down.shape} x {up.shape} at {layer}, the model's {path} {shape}: it belongs to "
                    "another model; leave it out"
                )
            scale = tensors.get(f"{layer}.lora_alpha", down.shape[1]) / down.shape[1]
            sums[path] = sums.get(path, out[path].astype(jnp.float32)) + weight * scale * (down @ up)
    return out | {path: value.astype(out[path].dtype) for path, value in sums.items()}


def layers_of(tensors: Tensors, name: str = "") -> list[str]:
    """The paths of the layers that a LoRA adapts. Raises InputError for a key of no LoRA and for a half of a pair."""
    ends: dict[str, set[str]] = {}
    for key in tensors:
        layer, _, end = key.rpartition(".")
        if end not in ("lora_down", "lora_up", "lora_alpha"):
            raise InputError(f"LoRA {name!r} has {key}; its keys end in .lora_down, .lora_up or .lora_alpha")
        ends.setdefault(layer, set()).add(end)
    for layer, has in ends.items():
        if missing := {"lora_down", "lora_up"} - has:
            raise InputError(f"LoRA {name!r} lacks {layer}.{min(missing)}; the file is not whole")
    return list(ends)
