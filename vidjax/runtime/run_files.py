"""Reads what a run has written about itself. Files may be damaged since: each function then raises InputError."""

import json
from itertools import chain
from typing import Any

from vidjax.errors import InputError, reason
from vidjax.runtime import inputs
from vidjax.runtime.inputs import read_bytes
from vidjax.runtime.limits import from_json
from vidjax.runtime.storage import AnyPath

REMEDY = "put back what the run wrote, or take another --workdir"


def read_json(path: AnyPath) -> Any:
    """Reads a JSON file that a run which got so far has written."""
    if not path.exists():
        raise InputError(f"{path} does not exist: is this the --workdir of a vidjax run that got that far?")
    return inputs.read_json(path, remedy=REMEDY)


def read_metrics(path: AnyPath) -> list[dict[str, Any]]:
    """Reads metrics.jsonl up to its first invalid line: a killed run may have left half a line."""
    entries = []
    for line in read_bytes(path, remedy=REMEDY).splitlines() if path.exists() else []:
        try:
            entry = from_json(line)
        except ValueError:
            break
        step = entry.get("step") if isinstance(entry, dict) else None
        if type(step) is not int or not 0 <= step < 2**53:
            break
        entries.append(entry)
    return entries


def read_figures(workdir: AnyPath, name: str) -> dict[str, float]:
    """Returns the number `name` of every stage's done.json that has it, by stage."""
    found = {}
    for path in sorted(workdir.glob("*/done.json")):
        value = read_json(path)
        if isinstance(value, dict) and _number(value.get(name)):
            found[path.parent.name] = float(value[name])
    return found


def read_statistics(path: AnyPath, channels: int | None = None) -> dict[str, Any]:
    """Reads shift and scale of an autoencoder's latents, numbers or tuples of one for each of `channels`; {} if they
    have not been measured yet."""
    if not path.exists():
        return {}
    value = read_json(path)
    named = isinstance(value, dict) and set(value) == {"shift", "scale"}
    found = {name: each if channels else [each] for name, each in value.items()} if named else {}
    lists = all(isinstance(each, list) and len(each) == (channels or 1) for each in found.values())
    if not (named and lists and all(map(_number, chain(*found.values())))) or 0 in found["scale"]:
        raise InputError(f"{path} is damaged (it is {reason(ValueError(json.dumps(value)))}): {REMEDY}")
    return {name: tuple(map(float, each)) if channels else float(each[0]) for name, each in found.items()}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
