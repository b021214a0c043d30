"""How many floating-point operations a function takes, read off its jaxpr: matrix products and convolutions alone.

Nothing is compiled or run, a scan counts as often as it turns, and attention and convolutions count in their textbook
form whatever the machine's faster one is: so a figure is the same on every device and MFU is comparable.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

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


def count_with_gradient(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs of a loss and of its gradient by the first argument. The forward pass alone is traced, a third of the work:
    the backward pass repeats each of its products once for each factor that the first argument moves."""
    with kernels.textbook():
        jaxpr = jax.make_jaxpr(lambda *args: function(*args))(*args).jaxpr
    count = len(jax.tree.leaves(args[0]))
    return _with_gradient(jaxpr, [i < count for i in range(len(jaxpr.invars))], [True])[0]


def _with_gradient(jaxpr: Any, moved: Sequence[bool], asked: Sequence[bool]) -> tuple[float, list[bool]]:
    """The FLOPs of a jaxpr and of the backward pass from the outputs that are asked for to the inputs that move, and
    which outputs then move."""
    variables = lambda atoms: {atom for atom in atoms if not isinstance(atom, Literal)}
    passes = lambda equation: equation.primitive.name != "stop_gradient" and not wanted.isdisjoint(equation.outvars)
    moves = lambda atom: not isinstance(atom, Literal) and atom in moving
    moving = {var for var, does in zip(jaxpr.invars, moved) if does}
    wanted, total = variables(var for var, is_asked in zip(jaxpr.outvars, asked) if is_asked), 0.0
    for equation in reversed(jaxpr.eqns):
        if passes(equation):
            wanted |= variables(equation.invars)
    for equation in jaxpr.eqns:
        inputs = [passes(equation) and moves(atom) for atom in equation.invars]
        out, asked = [any(inputs)] * len(equation.outvars), [var in wanted for var in equation.outvars]
        if equation.primitive.name == "scan" and any(inputs):  # what is carried moves after one turn
            first, count = equation.params["num_consts"], equation.params["num_carry"]
            inputs[first : first + count], asked = [True] * count, [True] * len(asked)
        for inner in called(equation):
            flops, out = _with_gradient(inner, inputs[len(inputs) - len(inner.invars) :], asked)
            total += _turns(equation) * flops
        total += _own(equation) * (1 + sum(inputs[:2]))
        real = lambda var: jnp.issubdtype(var.aval.dtype, jnp.inexact)
        moving |= {var for var, does in zip(equation.outvars, out) if does and real(var)}
    return total, [moves(atom) for atom in jaxpr.outvars]


def _count(jaxpr: Any) -> float:
    return sum((flops for _, flops in _products(jaxpr)), 0.0)


def _products(jaxpr: Any, scope: str = "", turns: int = 1) -> Iterator[tuple[str, float]]:
    for equation in jaxpr.eqns:
        own, times = f"{scope}/{equation.source_info.name_stack}", turns * _turns(equation)
        yield own, times * _own(equation)
        for inner in called(equation):
            yield from _products(inner, own, times)


def _turns(equation: Any) -> int:
    return equation.params["length"] if equation.primitive.name == "scan" else 1


def called(equation: Any) -> list[Any]:
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
