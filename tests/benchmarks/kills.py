"""SIGKILL at random moments of a loop that saves at every step: `python tests/benchmarks/kills.py --kills 100`.

A fork of a warm process costs a tenth of a new one, so that most moments are inside a save. tests/test_faults.py kills
whole runs.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from training.test_checkpoint import toy

from vidjax.training.checkpoint import Checkpoints


def in_child(work) -> int:
    """Its process id; `work` must not have touched a device before."""
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(KeyboardInterrupt):
            try:
                work()
                status = 0
            finally:
                sys.stdout.flush()
                os._exit(status)
    return child


def saving(folder: Path) -> None:
    """From the newest checkpoint on, one a step; `known` says which step is on disk for certain."""
    with Checkpoints(folder / "checkpoints") as checkpoints:
        step = checkpoints.latest() or 0
        while True:
            step += 1
            checkpoints.save(toy(step))
            (folder / "begun").write_text(str(step))
            checkpoints._manager.wait_until_finished()
            (folder / "known.part").write_text(str(step))
            (folder / "known.part").replace(folder / "known")


def checking(folder: Path) -> None:
    """The newest checkpoint is no older than what was known to be there, and is bit for bit what was saved."""
    known = int((folder / "known").read_text()) if (folder / "known").exists() else 0
    with Checkpoints(folder / "checkpoints") as checkpoints:
        step = checkpoints.latest() or 0
        assert step >= known, (step, known)
        if step:
            read, written = checkpoints.restore(toy(0)).saved(), toy(step).saved()
            jax.tree.map(np.testing.assert_array_equal, read, written)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    kills, rng, inside = parser.parse_args().kills, random.Random(0), 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for number in range(kills):
            begun = (folder / "begun").read_text() if number else ""
            child = in_child(lambda: saving(folder))
            while (folder / "begun").read_text() == begun if (folder / "begun").exists() else True:
                if os.waitpid(child, os.WNOHANG)[0]:
                    sys.exit("the child has ended by itself")
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 1))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            inside += any("tmp" in path.name for path in (folder / "checkpoints").iterdir())
            if os.waitpid(in_child(lambda: checking(folder)), 0)[1]:
                sys.exit(f"kill {number + 1}: the newest checkpoint is not what was saved")
        last = (folder / "known").read_text()
    print(f"{kills} kills, {inside} inside a save, up to step {last}: every newest checkpoint was whole")


if __name__ == "__main__":
    main()
