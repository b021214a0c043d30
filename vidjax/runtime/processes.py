"""What the processes of one run share: decisions and arrays. With one process each of these is nothing."""

import contextlib
import functools
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.distributed import global_state  # its key-value store, at which a process may wait for long
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vidjax.errors import InputError
from vidjax.runtime.sharding import BATCH, batch_ways

PATIENCE = 24 * 3600 * 1000  # milliseconds for what the first process does alone; a lost one is noticed earlier
FAREWELL = 5  # seconds that the first process gives the others to end by themselves
LAST_STEPS = 1  # seconds between their last word and their end
LOST = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "coordination")  # words of JAX when others are gone
_turn = itertools.count()


def lead() -> bool:
    """Whether this is the process that writes files and talks."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Print it, once; on a full disk, or to a reader that is gone, it is lost, and the run goes on."""
    if lead():
        with contextlib.suppress(OSError):
            print(text, flush=True)


def tells_of_a_loss(error: BaseException) -> bool:
    """Whether an error comes from the end of another process."""
    return jax.process_count() > 1 and any(word in str(error) for word in LOST)


def after_the_others() -> None:
    """Before a process ends early: the first one waits until the others have said why they end, if they do. They are
    joined through it: when it goes, JAX aborts them in the middle of a word."""
    client, deadline = global_state.client, time.monotonic() + FAREWELL
    if client is None:
        return
    with contextlib.suppress(Exception):  # one that does not answer, or is lost
        if not lead():
            client.key_value_set(f"vidjax/ended/{jax.process_index()}", "")
            return
        for other in range(1, jax.process_count()):
            left = max(deadline - time.monotonic(), 0)
            client.blocking_key_value_get(f"vidjax/ended/{other}", int(1000 * left))
        time.sleep(LAST_STEPS)


def agreed(make: Callable[[], Any]) -> Any:
    """What `make` gives in the first process, plain data, in all of them; so is its InputError. The others wait."""
    if jax.process_count() == 1:
        return make()
    client, key = global_state.client, f"vidjax/{next(_turn)}"
    assert client is not None
    if lead():
        try:
            said = {"value": make()}
        except InputError as error:
            said = {"error": str(error)}
        client.key_value_set(key, json.dumps(said))
    else:
        said = json.loads(client.blocking_key_value_get(key, PATIENCE))
    if "error" in said:
        raise InputError(said["error"])
    return said["value"]


def gathered(tree: Any) -> Any:
    """Arrays that lie over the devices of all processes, each whole on one of this process; all call it together. For
    results, not for parameters."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: _whole(x.sharding.mesh)(x).addressable_data(0), tree)


@functools.cache
def _whole(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


def spread(tree: Any, shardings: Any) -> Any:
    """Arrays that every process has whole, laid out over the devices of all: the other way round. What lies there
    already stays."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            there = x.sharding.is_equivalent_to(sharding, x.ndim)
            return x if there else jax.jit(lambda x: x, out_shardings=sharding)(x)
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree, shardings)


def batch_over(mesh: Mesh, tree: Any, size: int, axis: int = 0) -> Any:
    """Arrays that every process has whole, `axis` of each filled up to `size` with its last entry and cut over the data
    and fsdp axes; or whole on every device, if these do not divide `size`."""
    cut = PartitionSpec(*(None,) * axis, BATCH) if size % batch_ways(mesh) == 0 else PartitionSpec()

    def put(x: Any) -> jax.Array:
        missing = [(0, size - n if i == axis else 0) for i, n in enumerate(x.shape)]
        filled = jnp.pad(jnp.asarray(x), missing, "edge") if x.shape[axis] < size else x
        return spread(filled, NamedSharding(mesh, cut))

    return jax.tree.map(put, tree)


def run_over(mesh: Mesh, function: Callable[[Any, Any], Any], params: Any, batch: Any) -> Any:
    """`function(params, batch)`, jitted, of a batch that every process has whole and parameters that lie on the mesh;
    what it gives an example, in every process."""
    count = len(jax.tree.leaves(batch)[0])
    ways = batch_ways(mesh)
    laid = batch_over(mesh, batch, -(-count // ways) * ways)
    with jax.set_mesh(mesh):
        found = gathered(function(params, laid))
    return jax.tree.map(lambda x: np.asarray(x)[:count], found)
