"""Checks, times and trains vidjax on one machine with an accelerator, and writes one JSON file.

    python tests/benchmarks/on_gpu --json FILE      (on a TPU host: on_tpu)

In this order, each figure in the file as soon as it is there:

    facts        device, memory, versions, commit, command
    correctness  kernels, networks, training steps and sampling against the host's CPU, in the same process
    timing       attention kernels, training steps, sampling and decoding, beside the compiler's own estimates
    training     the default recipe for `--minutes`, as a user runs it

Each item runs in a process of its own: one that fails, crashes or hangs is recorded with its error, and the next one
starts. Compiling takes most of the time, minutes for a large step: on a GPU some items run `--at-once`, and each pauses
the others while it measures. `--parts timing/tune,training` runs parts or single items again and leaves the rest of the
file as it is.

To a machine without a package registry: where there is one, for the same Python and platform,
`pip download -d wheels '.[cuda13]'` (TPU: '.[tpu]'); carry `wheels` and the repository over; there
`pip install --no-index --find-links wheels 'vidjax[cuda13]'`. Nothing else is read: data and weights are made here.
"""

# ruff: noqa: E402
import argparse
import datetime
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import items
import training
import turns
from processes import describe_end, run_process, stop_all
from record import Record

NO_DEVICE = 3  # exit status of a process that finds another platform
SPARE = 4  # minutes around the training for compiling, sampling and measuring its rate


def main(platform: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(items.PARTS), help="parts or items, separated by commas")
    parser.add_argument("--minutes", type=float, help="of training; default 10")
    parser.add_argument("--total", type=float, default=60, help="minutes in all: what is not reached is skipped")
    parser.add_argument("--limit", type=float, default=10, help="minutes for an item")
    parser.add_argument("--at-once", type=int, help="items; default: one per two cores up to 6, on a TPU 1")
    parser.add_argument("--small", action="store_true", help="everything at toy size, on whatever device there is")
    args = parser.parse_args()
    try:
        chosen = items.choose(args.parts.split(","), args.small)
    except ValueError as error:
        parser.error(str(error))
    minutes = args.minutes or (0.02 if args.small else 10)
    record, began = Record(args.json.absolute()), time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: (stop_all(), sys.exit(143)))
    at_once = args.at_once or (1 if platform == "tpu" else min(6, max(1, (os.cpu_count() or 1) // 2)))
    train = "training" in chosen
    until = began + 60 * (args.total - (minutes + SPARE if train else 0))
    with tempfile.TemporaryDirectory() as folder:
        environment = make_environment(platform, args.small, Path(folder), at_once)
        one = [name for name in chosen if name != "training"]
        run_items(record, one, platform, args.small, 60 * args.limit, until, environment, at_once)
        if train:
            start = describe_start(platform, "training", args.small)
            training.run(record, start, minutes, args.small, Path(folder), environment)
    failed = [*items.failures(record.read())]
    print(f"{args.json}: " + ("all passed" if not failed else f"{len(failed)} failed: {', '.join(failed)}"))


def make_environment(platform: str, small: bool, folder: Path, at_once: int) -> dict[str, str]:
    """Of the processes: the accelerator and the CPU, the repository's code, one cache of compiled programs."""
    own = dict(os.environ)
    if at_once > 1:
        (folder / "turns").touch()
        own[turns.FILE] = str(folder / "turns")
        own.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if not small:
        platforms = own.get("JAX_PLATFORMS") or {"gpu": "cuda", "tpu": "tpu"}[platform]
        own["JAX_PLATFORMS"] = platforms if "cpu" in platforms.split(",") else f"{platforms},cpu"
    own["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), own.get("PYTHONPATH", "")])
    own.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    own.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    own.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    return own


def describe_start(platform: str, name: str, small: bool) -> dict[str, str]:
    """When an item was measured, and the command that measures it again."""
    command = f"python tests/benchmarks/on_{platform} --parts {name}{' --small' if small else ''} --json FILE"
    return {"date": datetime.date.today().isoformat(), "command": command}


def run_items(
    record: Record,
    names: Sequence[str],
    platform: str,
    small: bool,
    limit: float,
    until: float,
    environment: Mapping[str, str],
    at_once: int = 1,
) -> None:
    """Runs items in order, so many at once, each in a new process; `small`: all in one, a new one after a crash."""
    for name in names:
        record.put(name.split("/"), describe_start(platform, name, small))

    def run(*now: str) -> int:
        """Runs items in one process; returns how many of them ended, the one that ended the process among them."""
        seconds = min(limit * len(now), until - time.monotonic())
        if seconds <= 0 and not small:
            record.put([*now[0].split("/"), "error"], "skipped: no time left of --total")
            return 1
        print(f"{', '.join(now)} (at most {seconds:.0f} s)", flush=True)
        command = [sys.executable, items.__file__, f"--json={record.file}", f"--platform={platform}", *now]
        status, tail = run_process([*command, "--small"] if small else command, seconds, environment)
        if status == NO_DEVICE:
            sys.exit(f"error: {tail}")
        ended = [name for name in now if "seconds" in record.get(*name.split("/"))]
        if len(ended) < len(now):
            died = now[len(ended)]
            record.put([*died.split("/"), "error"], describe_end(status, tail))
            ended.append(died)
        for name in ended:
            print(f"  {name}: {items.summarise(record.get(*name.split('/')))}", flush=True)
        return len(ended)

    if not small:
        with ThreadPoolExecutor(at_once) as threads:
            for _ in threads.map(run, names):
                pass
        return
    left = list(names)
    while left:
        left = left[run(*left) :]
