"""Reads what a run has written about itself, which others may have damaged. Each raises InputError, in one line."""

import json
from typing import Any

from vidjax.errors import InputError, reason
from vidjax.runtime import inputs
from vidjax.runtime.inputs import read_bytes
from vidjax.runtime.limits import from_json
from vidjax.runtime.storage import AnyPath

REMEDY = "put back what the run wrote, or take another --workdir"


def read_json(path: AnyPath) -> Any:
    """What a run that got so far must have written."""
    if not path.exists():
        raise InputError(f"{path} does not exist: is this the --workdir of a vidjax run that got that far?")
    return inputs.read_json(path, remedy=REMEDY)


def read_metrics(path: AnyPath) -> list[dict[str, Any]]:
    """The entries of metrics.jsonl up to the first line that is none: a killed run may have left half a line."""
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
    """A figure of done.json by stage, where there is one."""
    found = {}
    for path in sorted(workdir.glob("*/done.json")):
        value = read_json(path)
        if isinstance(value, dict) and _number(value.get(name)):
            found[path.parent.name] = float(value[name])
    return found


def read_statistics(path: AnyPath) -> dict[str, float]:
    """Shift and scale of an autoencoder's latents, {} if they were not measured yet."""
    if not path.exists():
        return {}
    value = read_json(path)
    right = isinstance(value, dict) and set(value) == {"shift", "scale"} and all(map(_number, value.values()))
    if not right or value["scale"] == 0:
        raise InputError(f"{path} is damaged (it is {reason(ValueError(json.dumps(value)))}): {REMEDY}")
    return {name: float(number) for name, number in value.items()}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
