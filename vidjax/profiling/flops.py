"""How many floating-point operations a function takes, read off its jaxpr: matrix products and convolutions alone.

Nothing is compiled or run, a scan counts as often as it turns, and attention and convolutions count in their textbook
form whatever the machine's faster one is: so a figure is the same on every device and MFU is comparable.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from vidjax.models import kernels


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs of `function(*args)`, a multiplication and an addition each; arguments may be shapes."""
    return sum(flops_by_scope(function, *args).values(), 0.0)


def flops_by_scope(function: Callable[..., Any], *args: Any) -> dict[str, float]:
    """The same, by the `jax.named_scope`s and transformations in which each product stands, joined by slashes."""
    found: dict[str, float] = {}
    with kernels.textbook():
        for scope, flops in _products(jax.make_jaxpr(lambda *args: function(*args))(*args).jaxpr):
            found[scope] = found.get(scope, 0.0) + flops
    return found


def _count(jaxpr: Any) -> float:
    return sum((flops for _, flops in _products(jaxpr)), 0.0)


def _products(jaxpr: Any, scope: str = "", turns: int = 1) -> Iterator[tuple[str, float]]:
    for equation in jaxpr.eqns:
        own, times = f"{scope}/{equation.source_info.name_stack}", turns * _turns(equation)
        yield own, times * _own(equation)
        for inner in _inner(equation):
            yield from _products(inner, own, times)


def _turns(equation: Any) -> int:
    return equation.params["length"] if equation.primitive.name == "scan" else 1


def _inner(equation: Any) -> list[Any]:
    """The jaxprs that an equation calls; of a condition's branches the dearest."""
    found = []
    for value in equation.params.values():
        items = value if isinstance(value, tuple | list) else (value,)
        found += [getattr(item, "jaxpr", item) for item in items if hasattr(getattr(item, "jaxpr", item), "eqns")]
    return [max(found, key=_count)] if equation.primitive.name == "cond" else found


def _own(equation: Any) -> float:
    match equation.primitive.name:
        case "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            return 2.0 * math.prod(out) * math.prod(left[i] for i in contracted)
        case "conv_general_dilated":
            kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            spec = equation.params["dimension_numbers"].rhs_spec  # (out features, in features, *space)
            zeros = math.prod(equation.params["lhs_dilation"])  # between the inputs: no products to count
            return 2.0 * math.prod(out) * math.prod(kernel) / kernel[spec[0]] / zeros
    return 0.0
