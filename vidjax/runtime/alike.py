"""Checks that the processes of one run were started alike: others would train together, wrongly."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax._src.distributed import global_state

from vidjax.errors import InputError
from vidjax.runtime.processes import WAIT_MILLISECONDS, lead, on_first_process

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "grain")


def check_alike(options: Mapping[str, Any]) -> None:
    """Raises InputError on all processes if one of them has other `options`, by name, other code of this package or
    other versions of the libraries that compute. All processes call it."""
    if jax.process_count() == 1:
        return
    client = global_state.client
    assert client is not None
    mine = {**options, **describe_installation()}
    if not lead():
        client.key_value_set(f"vidjax/alike/{jax.process_index()}", json.dumps(mine, default=str))

    def compare() -> None:
        for other in range(1, jax.process_count()):
            theirs = json.loads(client.blocking_key_value_get(f"vidjax/alike/{other}", WAIT_MILLISECONDS))
            if said := find_difference(json.loads(json.dumps(mine, default=str)), theirs, other):
                raise InputError(f"{said}: start all processes with the same command and the same installation")

    on_first_process(compare)


def find_difference(first: Mapping[str, Any], theirs: Mapping[str, Any], other: int) -> str:
    """Names the first entry in which process `other` differs from process 0; "" if there is none."""
    for name in dict.fromkeys([*first, *theirs]):
        here, there = (repr(each[name])[:80] if name in each else "absent" for each in (first, theirs))
        if here != there:
            return f"{name} is {here} in process 0 and {there} in process {other}"
    return ""


def describe_installation() -> dict[str, str]:
    """Returns the versions of the libraries that compute, and a hash of this package's code."""
    root, code = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        code.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    versions = {f"the version of {name}": version(name) for name in LIBRARIES}
    return {"the code of vidjax": code.hexdigest()[:16], **versions}
