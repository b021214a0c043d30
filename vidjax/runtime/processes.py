"""Shares decisions and arrays between the processes of a run. With one process all of it does nothing."""

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
from vidjax.runtime.sharding import BATCH_AXES, batch_ways

WAIT_MILLISECONDS = 24 * 3600 * 1000  # for what the first process does alone; a lost one is noticed earlier
FAREWELL_SECONDS = 5  # that the first process gives the others to end by themselves
ENDING_SECONDS = 1  # between their last word and their end
WORDS_OF_LOSS = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "coordination")  # JAX's, when others are gone
_turn = itertools.count()


def lead() -> bool:
    """Returns whether this is the first process, which alone writes files and prints."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints `text` on the first process. A full disk or a reader that is gone loses it; the run goes on."""
    if lead():
        with contextlib.suppress(OSError):
            print(text, flush=True)


def is_loss(error: BaseException) -> bool:
    """Returns whether an error comes from the end of another process."""
    return jax.process_count() > 1 and any(word in str(error) for word in WORDS_OF_LOSS)


def wait_for_others() -> None:
    """Waits on the first process until the others have printed why they end, for `FAREWELL_SECONDS` at most. They are
    connected through it: when it ends, JAX aborts them in the middle of a word."""
    client, deadline = global_state.client, time.monotonic() + FAREWELL_SECONDS
    if client is None:
        return
    with contextlib.suppress(Exception):  # one that does not answer, or is lost
        if not lead():
            client.key_value_set(f"vidjax/ended/{jax.process_index()}", "")
            return
        for other in range(1, jax.process_count()):
            left = max(deadline - time.monotonic(), 0)
            client.blocking_key_value_get(f"vidjax/ended/{other}", int(1000 * left))
        time.sleep(ENDING_SECONDS)


def on_first_process(make: Callable[[], Any]) -> Any:
    """Calls `make` on the first process and returns its result, plain data, on all; an InputError is raised on all."""
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
        said = json.loads(client.blocking_key_value_get(key, WAIT_MILLISECONDS))
    if "error" in said:
        raise InputError(said["error"])
    return said["value"]


def gather(tree: Any) -> Any:
    """Returns arrays that are sharded over all processes, each whole on one device of this process. All processes call
    it. For results, not for parameters."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: _whole(x.sharding.mesh)(x).addressable_data(0), tree)


@functools.cache
def _whole(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


def scatter(tree: Any, shardings: Any) -> Any:
    """Shards arrays that every process has whole over the devices of all processes; the inverse of `gather`. Arrays
    that have their sharding already are returned as they are."""
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
    """Shards arrays that every process has whole along `axis`, over the data and fsdp axes; `axis` is first padded to
    `size` with its last entry. They are replicated if the mesh does not divide `size`."""
    cut = PartitionSpec(*(None,) * axis, BATCH_AXES) if size % batch_ways(mesh) == 0 else PartitionSpec()

    def put(x: Any) -> jax.Array:
        missing = [(0, size - n if i == axis else 0) for i, n in enumerate(x.shape)]
        filled = jnp.pad(jnp.asarray(x), missing, "edge") if x.shape[axis] < size else x
        return scatter(filled, NamedSharding(mesh, cut))

    return jax.tree.map(put, tree)


def run_over(mesh: Mesh, function: Callable[[Any, Any], Any], params: Any, batch: Any) -> Any:
    """Calls the jitted `function(params, batch)` on the mesh, with a batch that every process has whole, and returns
    its results per example on every process."""
    count = len(jax.tree.leaves(batch)[0])
    ways = batch_ways(mesh)
    laid = batch_over(mesh, batch, -(-count // ways) * ways)
    with jax.set_mesh(mesh):
        found = gather(function(params, laid))
    return jax.tree.map(lambda x: np.asarray(x)[:count], found)
