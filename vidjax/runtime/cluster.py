"""How the processes of one run meet, and how they end when one of them fails: the others must not wait for it."""

import contextlib
import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Iterator

from absl import flags

from vidjax.errors import InputError, reason

DISTRIBUTED = flags.DEFINE_bool("distributed", False, "First join the other processes of a cluster.")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of the first process; default: as the cluster says (TPU, GKE, SLURM, Open MPI)."
)
PROCESSES = flags.DEFINE_integer("processes", None, "How many there are, with --coordinator.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.", lower_bound=0)
TIMEOUT = flags.DEFINE_integer(
    "timeout",
    None,
    "Seconds in which the processes must have met; default: 60 with --coordinator, 600 in a cluster.",
    lower_bound=1,
)
SILENCE = 30  # seconds without a sign of life after which a process is lost, and the others end


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """With --distributed, after meeting the other processes. Whatever then ends one of them early ends all: at once
    where a connection breaks, else after `SILENCE`. Raises InputError if there is nothing to go by."""
    if not (DISTRIBUTED.value or COORDINATOR.value):
        yield
        return
    check_flags(COORDINATOR.value, PROCESSES.value, PROCESS_ID.value)
    import jax

    # The library would end the process in C++: it gets more time than there is.
    seconds = TIMEOUT.value or (60 if COORDINATOR.value else 600)
    how = dict(initialization_timeout=10 * seconds, heartbeat_timeout_seconds=SILENCE)
    try:
        with met_within(seconds):
            jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS_ID.value, **how)
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
    """Raises InputError for what is no HOST:PORT, and for a process that is not among those."""
    if coordinator is not None:
        found = re.fullmatch(r"(?:[^\s:]+|\[[0-9a-fA-F:.%]+\]):([0-9]{1,5})", coordinator)
        if not found or not 0 < int(found[1]) < 2**16:
            raise InputError(f"--coordinator={coordinator} is no HOST:PORT, such as 10.0.0.1:8476")
    if processes is not None and process_id is not None and process_id >= processes:
        raise InputError(f"--process_id={process_id} is none of --processes={processes}: they count from 0")


@contextlib.contextmanager
def met_within(seconds: float) -> Iterator[None]:
    """Ends the program, with one line, if what is done here takes longer; code that waits in C++ gets no exception."""

    def give_up() -> None:
        who = "this process" if PROCESS_ID.value is None else f"process {PROCESS_ID.value}"
        count = f"all {PROCESSES.value} processes" if PROCESSES.value else "all processes"
        print(
            f"error: {who} has not met the others in {seconds:g} s{unreached(COORDINATOR.value)}: start {count} with "
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


def unreached(coordinator: str | None) -> str:
    """Why there is no connection to the first process, in a bracket; nothing if there is one."""
    if coordinator is None:
        return ""
    host, _, port = coordinator.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    except OSError as error:
        return f" ({coordinator}: {error.strerror or reason(error)})"
    return ""


def _end(error: Exception) -> None:
    """Exit status 1 without the usual farewell, for which all processes would wait."""
    from vidjax.runtime.processes import after_the_others, tells_of_a_loss

    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, InputError):
        said = str(error)
    elif tells_of_a_loss(error):
        said = (
            f"lost another process of this run ({said[:200]}); start all of them again: they go on where it was saved"
        )
    else:
        traceback.print_exc()
    print(f"error: {said}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    after_the_others()
    os._exit(1)
