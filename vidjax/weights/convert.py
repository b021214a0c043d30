"""Fits a checkpoint to a model by rules on names: every key is used once, every parameter is filled; and back."""

import re
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from vidjax.errors import InputError
from vidjax.runtime.compiling import jit

Rules = Sequence[tuple[str, str | Callable[[re.Match], str]]]  # (regular expression, replacement), applied in order


def rename(key: str, rules: Rules) -> str:
    """Applies the rules to a key, one after the other."""
    for pattern, new in rules:
        key = re.sub(pattern, new, key)
    return key


def to_jax(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Transposes [out, in, *k] to [*k, in, out], and drops the leading axes of length 1 that `shape` lacks.

    So a 1x1 convolution is a linear layer, and (1, 3, 3) is (3, 3).
    """
    kernel = kernel.transpose(*range(2, kernel.ndim), 1, 0)
    while kernel.ndim > len(shape) and kernel.shape[0] == 1:
        kernel = kernel[0]
    return kernel


def to_torch(kernel: np.ndarray, pointwise: bool) -> np.ndarray:
    """Inverts `to_jax`, from [*k, in, out] to [out, in, *k]; a `pointwise` kernel becomes a 1x1 convolution."""
    kernel = kernel.transpose(-1, -2, *range(kernel.ndim - 2))
    return kernel[..., None, None] if pointwise else kernel


def unfit(params: Mapping[str, ArrayLike], keys: Rules, pointwise: str = r"$^") -> dict[str, np.ndarray]:
    """Inverts `fit`: key -> array in torch's layout. Keys that match `pointwise` become 1x1 convolutions.

    Raises InputError if two paths get the same key.
    """
    out: dict[str, np.ndarray] = {}
    for path, value in params.items():
        key = re.sub(r"\.(kernel|scale|embedding)$", ".weight", rename(path, keys))
        if key in out:
            raise InputError(f"parameter {path} and another both become {key}")
        value = np.asarray(value)
        out[key] = to_torch(value, bool(re.search(pointwise, key))) if path.endswith("kernel") else value
    return out


def fit(
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, np.ndarray],
    rules: Rules,
    ignore: str = r"$^",
    fresh: str = r"$^",
) -> dict[str, np.ndarray]:
    """Finds the array of each parameter path in `shapes`; keys that match `ignore` are left out.

    Parameters whose path matches `fresh` may be without a key: they are left out as well. Raises InputError that lists
    all others without one, keys without a parameter, keys that meet in one parameter, and shapes that differ.
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
            if not re.search(fresh, path):
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


def write_back(
    params: Mapping[str, ArrayLike], source: Mapping[str, np.ndarray], rules: Rules, ignore: str = r"$^"
) -> dict[str, np.ndarray]:
    """Writes parameters under the keys of the tensors that `fit` found them in, in their shapes and dtypes; keys that
    match `ignore` keep what they have. Raises InputError for another key without a parameter."""
    places, out = {re.sub(r"\.(kernel|scale|embedding)$", ".weight", path): path for path in params}, {}
    for key, value in source.items():
        path = None if re.search(ignore, key) else places.get(rename(key, rules), "")
        if path == "":
            raise InputError(f"no parameter for key {key}: the file is of another network")
        own = value if path is None else np.asarray(params[path])
        own = to_torch(own, False) if path and path.endswith("kernel") else own
        out[key] = np.array(own.reshape(value.shape), value.dtype, order="C")
    return out


def check_finite(value: np.ndarray, what: str) -> None:
    """Raises InputError if an array has NaN or infinity in it."""
    if not np.isfinite(value).all():
        raise InputError(f"{what} has values that are not finite (NaN or infinity): the file is damaged, get it again")


def parameters(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Variables that hold the parameters of a model, abstract or not, by path, `a.b.0.kernel`."""
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def load(
    model: nnx.Module,
    tensors: Mapping[str, np.ndarray],
    rules: Rules,
    ignore: str = r"$^",
    fresh: str = r"$^",
    dtype: DTypeLike | None = None,
) -> None:
    """Fills all parameters of `model`, which may be abstract, in place, one after the other; those that match `fresh`
    and have no key stay as they are. They keep their dtype, or all get `dtype`. Raises as `fit` and `check_finite`."""
    leaves = parameters(model)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    fitted = fit(shapes, tensors, rules, ignore, fresh)
    while fitted:  # an array that is mapped from a file is let go before the next one is read
        path, value = fitted.popitem()
        check_finite(value, f"parameter {path}")
        leaves[path].set_value(jax.device_put(np.array(value, dtype or leaves[path].dtype, order="C")))


def start(model: nnx.Module, make: Callable[[], nnx.Module], dtype: DTypeLike | None = None) -> None:
    """Gives the parameters of `model` that are still abstract the values they have in `make()`, of which no other
    parameter is computed."""
    leaves = {path: leaf for path, leaf in parameters(model).items() if not isinstance(leaf.get_value(), jax.Array)}

    def values() -> dict[str, jax.Array]:
        made = parameters(make())
        return {path: made[path][...].astype(dtype or leaf.dtype) for path, leaf in leaves.items()}

    if leaves:
        for path, value in jit(values)().items():
            leaves[path].set_value(value)
