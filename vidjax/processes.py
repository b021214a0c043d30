"""What the processes of one run share: decisions, arrays, work. With one process each of these is nothing."""

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src.distributed import global_state  # its key-value store, at which a process may wait for long
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from vidjax.errors import InputError

T = TypeVar("T")
PATIENCE = 24 * 3600 * 1000  # milliseconds for what the first process does alone; a lost one is noticed earlier
FAREWELL = 5  # seconds that the first process gives the others to end by themselves
LOST = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "coordination")  # words of JAX when others are gone
_turn = itertools.count()


def lead() -> bool:
    """Whether this is the process that writes files and talks."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Print it, once."""
    if lead():
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
    """Arrays that lie over the devices of all processes, each whole on one of this process; all call it together."""
    if jax.process_count() == 1:
        return tree
    whole = lambda x: NamedSharding(x.sharding.mesh, PartitionSpec())
    there = jax.jit(lambda tree: tree, out_shardings=jax.tree.map(whole, tree))(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), there)


def spread(tree: Any, shardings: Any) -> Any:
    """Arrays that every process has whole, laid out over the devices of all: the other way round."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree, shardings)


def shared(make: Callable[[T], np.ndarray], items: Sequence[T]) -> Iterator[np.ndarray]:
    """`make` of each item, arrays of one shape, in order and in all processes; each item is worked off in one."""
    count = jax.process_count()
    for start in range(0, len(items), count):
        made = make(items[min(start + jax.process_index(), len(items) - 1)])
        every = [made] if count == 1 else multihost_utils.process_allgather(made)
        yield from list(every)[: len(items) - start]
