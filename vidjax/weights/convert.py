"""Fits a checkpoint to a model by rules on names: every key is used once, every parameter is filled."""

import re
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidjax.errors import InputError

Rules = Sequence[tuple[str, str | Callable[[re.Match], str]]]  # (regular expression, replacement), applied in order


def rename(key: str, rules: Rules) -> str:
    for pattern, new in rules:
        key = re.sub(pattern, new, key)
    return key


def to_jax(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """From [out, in, *k] to [*k, in, out], without the leading axes of length 1 that `shape` lacks.

    So a 1x1 convolution is a linear layer, and (1, 3, 3) is (3, 3).
    """
    kernel = kernel.transpose(*range(2, kernel.ndim), 1, 0)
    while kernel.ndim > len(shape) and kernel.shape[0] == 1:
        kernel = kernel[0]
    return kernel


def fit(
    shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, np.ndarray], rules: Rules, ignore: str = r"$^"
) -> dict[str, np.ndarray]:
    """The array of each parameter path in `shapes`; keys that match `ignore` are left out.

    Raises InputError that lists parameters without a key, keys without a parameter, keys that meet in one parameter,
    and shapes that differ.
    """
    source: dict[str, str] = {}
    wrong = []
    for key in tensors:
        if not re.search(ignore, key):
            name = rename(key, rules)
            if name in source:
                wrong.append(f"{key} and {source[name]} both stand for {name}")
            source[name] = key
    out = {}
    for path, shape in shapes.items():
        key = source.pop(re.sub(r"\.(kernel|scale|embedding)$", ".weight", path), None)
        if key is None:
            wrong.append(f"no key for parameter {path}")
            continue
        value = tensors[key]
        out[path] = to_jax(value, shape) if path.endswith("kernel") else value
        if out[path].shape != tuple(shape):
            wrong.append(f"{key} has shape {value.shape}, parameter {path} {tuple(shape)}")
    wrong += [f"no parameter for key {key}" for key in source.values()]
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise InputError(f"the checkpoint does not fit the model: {'; '.join(wrong[:8])}{more}")
    return out


def parameters(model: nnx.Module) -> dict[str, nnx.Variable]:
    """The parameters of a model by path, `a.b.0.kernel`."""
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def load(model: nnx.Module, tensors: Mapping[str, np.ndarray], rules: Rules, ignore: str = r"$^") -> None:
    """Fills all parameters of `model`, which may be abstract, in place. Raises as `fit` does."""
    leaves = parameters(model)
    for path, value in fit({path: leaf.shape for path, leaf in leaves.items()}, tensors, rules, ignore).items():
        leaves[path].set_value(jnp.asarray(np.ascontiguousarray(value), leaves[path].dtype))
