"""How the processes of one run meet, and how they end when one of them fails: the others must not wait for it."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

from absl import flags

from vidjax.errors import InputError

DISTRIBUTED = flags.DEFINE_bool("distributed", False, "First join the other processes of a cluster.")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of the first process; default: as the cluster says (TPU, GKE, SLURM, Open MPI)."
)
PROCESSES = flags.DEFINE_integer("processes", None, "How many there are, with --coordinator.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.", lower_bound=0)
SILENCE = 30  # seconds without a sign of life after which a process is lost, and the others end


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """With --distributed, after meeting the other processes. Whatever then ends one of them early ends all: at once
    where a connection breaks, else after `SILENCE`. Raises InputError if there is nothing to go by."""
    if not (DISTRIBUTED.value or COORDINATOR.value):
        yield
        return
    import jax

    try:
        jax.distributed.initialize(
            COORDINATOR.value, PROCESSES.value, PROCESS_ID.value, heartbeat_timeout_seconds=SILENCE
        )
    except ValueError as error:
        raise InputError(
            f"--distributed finds no cluster ({error}) It knows Cloud TPU slices, GKE, SLURM and Open MPI; elsewhere "
            "give --coordinator=HOST:PORT --processes=N --process_id=I, or leave the flag out on one machine"
        ) from None
    try:
        yield
    except Exception as error:
        _end(error)
    jax.distributed.shutdown()


def _end(error: Exception) -> None:
    """Exit status 1 without the usual farewell, for which all processes would wait."""
    from vidjax.processes import after_the_others, tells_of_a_loss

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
