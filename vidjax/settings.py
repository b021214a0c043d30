"""Turns a config section into the arguments of the function or dataclass that owns the defaults, checked."""

import dataclasses
import difflib
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from vidjax.errors import InputError

T = TypeVar("T")
SECTIONS = ("data", "autoencoder", "discriminator", "model", "conditioning", "diffusion", "loss", "optimizer", "mesh")
SECTIONS += ("train", "sample", "finetune", "flow")


def near_match(name: str, known: typing.Iterable[str]) -> str:
    """Writes `; did you mean 'x'?` for the most similar known name, else the list of all."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def choose(name: Any, table: Mapping[str, T], what: str) -> T:
    """Returns the entry `name` of a table. Raises InputError with the most similar name if there is none."""
    if not isinstance(name, str) or name not in table:
        raise InputError(f"{what} {name!r} is not known{near_match(str(name), table)}")
    return table[name]


def construct(make: Callable[..., T], section: Mapping[str, Any] | None, where: str, **given: Any) -> T:
    """Returns `make(**section, **given)`; `where` names the section in errors.

    Lists become tuples, and a mapping becomes the dataclass that the argument's annotation names.

    Raises: InputError for a key that `make` does not take, a required one that is missing, or a value of another type
    than its annotation says.
    """
    return bind(make, section, where, **given)()


def bind(function: Callable[..., T], settings: Mapping[str, Any] | None, where: str, **given: Any) -> Callable[..., T]:
    """Binds keyword arguments of `function` to a config section, checked as in `construct`; positional ones stay
    open."""
    section: dict[str, Any] = plain(settings or {})
    takes = {n: p for n, p in _parameters(function) if not _stays_open(function, p)}
    for key in section:
        if key in given:
            raise InputError(f"config.{where}.{key} follows from other settings; remove it from the config")
        if key not in takes:
            raise InputError(f"config.{where}.{key} does not exist{near_match(key, takes.keys() - given.keys())}")
    missing = [n for n, p in takes.items() if p.default is p.empty and n not in section and n not in given]
    if missing:
        raise InputError(f"config.{where} lacks {', '.join(missing)}")
    hints = typing.get_type_hints(_signature_of(function))
    arguments = {key: _nested(value, hints.get(key), f"{where}.{key}") for key, value in section.items()}
    return functools.partial(function, **arguments, **given)


def options(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns what a config section of `function` may set, with the annotated types; None where there is none."""
    hints = typing.get_type_hints(_signature_of(function))
    return {name: hints.get(name) for name, each in _parameters(function) if not _stays_open(function, each)}


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the values of the options of `function` that have one of their own."""
    return {n: p.default for n, p in _parameters(function) if n in options(function) and p.default is not p.empty}


def _parameters(function: Callable[..., Any]) -> Iterable[tuple[str, inspect.Parameter]]:
    return inspect.signature(_signature_of(function)).parameters.items()


def _signature_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of a class that is no dataclass its __init__: the metaclass of modules hides it."""
    own = inspect.isclass(function) and not dataclasses.is_dataclass(function)
    return function.__init__ if own else function


def _stays_open(function: Callable[..., Any], parameter: inspect.Parameter) -> bool:
    """Returns whether a parameter is no option: options are dataclass fields, keyword-only arguments and those with a
    default."""
    positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty
    return parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or (
        positional and not dataclasses.is_dataclass(function)
    )


def _nested(value: Any, hint: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        for kind in (hint, *typing.get_args(hint)):
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                return construct(kind, value, where)
    if not fits(value, hint):
        said = hint.__name__ if type(hint) is type else str(hint).replace("typing.", "")
        raise InputError(f"config.{where}={value!r} is not {said}")
    return value


def fits(value: Any, hint: Any) -> bool:
    """Returns whether plain data has the annotated type. Integers are floats, too; infinity and NaN are neither.

    Annotations of types that no config holds, such as functions and arrays, accept everything.
    """
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if kind in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if kind is typing.Literal:
        return value in inner
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in (int, str, bool, types.NoneType):
        return type(value) is hint
    if kind in (tuple, Sequence):
        fixed = kind is tuple and inner[-1:] != (...,)
        if not isinstance(value, tuple) or (fixed and len(value) != len(inner)):
            return False
        return all(fits(entry, each) for entry, each in zip(value, inner if fixed else inner[:1] * len(value)))
    if kind is Mapping:
        return isinstance(value, Mapping) and all(fits(entry, inner[1]) for entry in value.values())
    return not dataclasses.is_dataclass(hint)


def plain(value: Any) -> Any:
    """Returns a config as plain data: dicts, tuples, strings, numbers."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    return value


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of a nested config by dotted name, such as {"data.size": 64}; an empty section is a value."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        inner = isinstance(value, Mapping) and value
        found |= flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def checked(value: Any) -> dict[str, Any]:
    """Returns a recipe's config as plain data. Raises InputError unless it has stages, and sections where they
    belong."""
    config = plain(value)
    if not isinstance(config, Mapping) or not isinstance(config.get("stages"), Mapping):
        raise InputError("the config has no stages: a recipe has stages=dict(NAME=dict(...)), see configs/lvdm.py")
    stages = {f"stages.{name}": stage for name, stage in config["stages"].items()}
    sections = {
        f"{path}.{key}": each.get(key, {})
        for path, each in stages.items()
        if isinstance(each, Mapping)
        for key in SECTIONS
    }
    for path, section in {**{key: config.get(key, {}) for key in SECTIONS}, **stages, **sections}.items():
        if not isinstance(section, Mapping):
            raise InputError(f"config.{path}={section!r} is no section but a value")
    return dict(config)


class Sections(dict[str, Any]):
    """The sections of a config; `[]` raises InputError for one that it lacks."""

    def __missing__(self, key: str) -> Any:
        raise InputError(f"config.{key} is missing{near_match(key, self)}")


def stage_settings(config: Mapping[str, Any], stage: str) -> Sections:
    """Returns the config of one stage: its own entries, section by section, over the common ones."""
    common: dict[str, Any] = plain(config)
    stages = common.pop("stages")
    own = choose(stage, stages, "stage")
    merged = Sections(common)
    for key, value in own.items():
        merged[key] = {**common.get(key, {}), **value} if isinstance(value, Mapping) else value
    return merged
