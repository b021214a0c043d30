"""Joins the processes of one run, and ends all of them when one fails: the others must not wait for it."""

import contextlib
import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Iterator

from vidjax.errors import InputError, reason

SILENCE_SECONDS = 30  # without a sign of life, after which a process is lost, and the others end


@contextlib.contextmanager
def join(
    coordinator: str | None = None, processes: int | None = None, process_id: int | None = None, seconds: int = 600
) -> Iterator[None]:
    """Meets the other processes of a run within `seconds`, then runs the block, which ends on all if it fails on one:
    at once where a connection breaks, else after `SILENCE_SECONDS`.

    Without a coordinator, HOST:PORT of the first process, it is the cluster's (Cloud TPU, GKE, SLURM, Open MPI). Raises
    InputError if there is none, or if the others are not met.
    """
    check_flags(coordinator, processes, process_id)
    import jax

    # The library would end the process in C++: it gets more time than there is.
    try:
        with limit_wait(seconds, coordinator, processes, process_id):
            jax.distributed.initialize(
                coordinator,
                processes,
                process_id,
                initialization_timeout=10 * seconds,
                heartbeat_timeout_seconds=SILENCE_SECONDS,
            )
    except ValueError as error:
        raise InputError(
            f"--distributed finds no cluster ({error}) It knows Cloud TPU slices, GKE, SLURM and Open MPI; elsewhere "
            "give --coordinator=HOST:PORT --processes=N --process_id=I, or leave the flag out on one machine"
        ) from None
    except RuntimeError as error:
        raise InputError(f"the processes did not meet ({reason(error)}): start all of them again") from None
    try:
        yield
    except Exception as error:
        _end(error)
    jax.distributed.shutdown()


def check_flags(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    """Raises InputError unless `coordinator` is HOST:PORT and 0 <= process_id < processes."""
    if coordinator is not None:
        found = re.fullmatch(r"(?:[^\s:]+|\[[0-9a-fA-F:.%]+\]):([0-9]{1,5})", coordinator)
        if not found or not 0 < int(found[1]) < 2**16:
            raise InputError(f"--coordinator={coordinator} is no HOST:PORT, such as 10.0.0.1:8476")
    if processes is not None and process_id is not None and process_id >= processes:
        raise InputError(f"--process_id={process_id} is none of --processes={processes}: they count from 0")


@contextlib.contextmanager
def limit_wait(
    seconds: float, coordinator: str | None, processes: int | None, process_id: int | None
) -> Iterator[None]:
    """Ends the program with one line if the block takes longer: code that waits in C++ gets no exception."""

    def give_up() -> None:
        who = "this process" if process_id is None else f"process {process_id}"
        count = f"all {processes} processes" if processes else "all processes"
        print(
            f"error: {who} has not met the others in {seconds:g} s{explain_unreached(coordinator)}: start {count} with "
            "the same --coordinator within that time, or set --timeout",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def explain_unreached(coordinator: str | None) -> str:
    """Says in brackets why there is no connection to the first process; "" if there is one."""
    if coordinator is None:
        return ""
    host, _, port = coordinator.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    except OSError as error:
        return f" ({coordinator}: {error.strerror or reason(error)})"
    return ""


def _end(error: Exception) -> None:
    """Ends this process with status 1, without JAX's farewell, for which all processes would wait."""
    from vidjax.runtime.processes import is_loss, wait_for_others

    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, InputError):
        said = str(error)
    elif is_loss(error):
        said = (
            f"lost another process of this run ({said[:200]}); start all of them again: they go on where it was saved"
        )
    else:
        traceback.print_exc()
    print(f"error: {said}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    wait_for_others()
    os._exit(1)
