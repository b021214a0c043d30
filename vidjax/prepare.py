"""Any source to ArrayRecord shards: `python -m vidjax.prepare --source=folder --path=DIR --out=OUT`.

Decodes every clip once, leaves out what cannot be used, and writes the others with captions and classes as a tfds data
set: train with --config.data.source=tfds --config.data.path=OUT. Clips that are kept whole keep their bytes, those that
are cut, and pictures, become H.264. OUT/report.json says what was dropped and why.

Killed, the same command goes on where it was. The work is done by Apache Beam on this machine's cores, or with
--beam_options on a cluster whose machines share the folders. `pip install -e '.[prepare]'`
"""

import contextlib
import functools
import os
import re
import shlex
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from absl import flags

from vidjax import cli, settings
from vidjax.data import shards
from vidjax.data.readers import SOURCES
from vidjax.data.screening import Rules
from vidjax.errors import InputError
from vidjax.runtime.outputs import open_new_folder

SOURCE = flags.DEFINE_string("source", "folder", "How the clips lie: as config.data.source.")
PATH = flags.DEFINE_string("path", None, "Where they lie: as config.data.path.")
SPLIT = flags.DEFINE_string("split", "train", "Which of them: as config.data.split; also the name it gets.")
OUT = flags.DEFINE_string("out", None, "A new folder.")
FRAMES_MIN = flags.DEFINE_integer("frames_min", 16, "Shorter clips are dropped.", lower_bound=1)
SIZE_MIN = flags.DEFINE_integer("size_min", 64, "Clips with fewer rows or columns are dropped.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 0, "Longer clips become several of this length; 0: none.", lower_bound=0)
SCENES = flags.DEFINE_boolean("scenes", False, "Clips with scene cuts become several (PySceneDetect).")
DUPLICATES = flags.DEFINE_string(
    "duplicates", "exact", "exact: drop clips of equal frames; alike: of frames that look alike, too; keep: none."
)
SHARDS = flags.DEFINE_integer("shards", 0, "Files to write; 0: one for every 256 clips.", lower_bound=0)
WORKERS = flags.DEFINE_integer("workers", 0, "Processes on this machine; 0: one a core.", lower_bound=0)
BEAM_OPTIONS = flags.DEFINE_string(
    "beam_options",
    "",
    'Options of Apache Beam, "--runner=FlinkRunner --flink_master=HOST:8081": instead of this machine.',
)
SHOWN = 20  # dropped clips that are printed


def main() -> None:
    """Writes the clips of --path as shards into --out."""
    for name, flag in (("path", PATH), ("out", OUT)):
        if not flag.value:
            raise InputError(f"--{name} is missing")
    settings.choose(SOURCE.value, SOURCES, "--source")
    if not re.fullmatch(r"\w*", SPLIT.value):
        raise InputError(f"--split={SPLIT.value}: a name of letters, digits and _")
    rules = Rules(FRAMES_MIN.value, SIZE_MIN.value, SECONDS.value, SCENES.value, DUPLICATES.value)
    beam_options()
    if not all(find_spec(module) for module in ("apache_beam", "scenedetect", "imagehash")):
        raise InputError("to prepare data sets takes Apache Beam and others: pip install -e '.[prepare]'")
    out, part = Path(OUT.value), Path(f"{os.path.abspath(OUT.value)}.part")
    job = shards.Job(SOURCE.value, PATH.value, SPLIT.value, rules, SHARDS.value, str(part))
    if not len(job.clips):
        raise InputError(f"--path={PATH.value} has no clips")
    if not shards.is_finished(job, out):
        open_new_folder(OUT.value)
        make(job, out)
    shards.clear(job)
    split = "" if SPLIT.value == "train" else f" --config.data.split={SPLIT.value or 'train'}"
    print(f"{out}: train with --config.data.source=tfds --config.data.path={out}{split}")


def make(job: shards.Job, out: Path) -> None:
    """Does all the steps that are not done yet."""
    shards.begin(job)
    run(shards.examine_piece, job, shards.piece_files(job), "examining")
    report = shards.plan(job)
    show(report)
    if not report["clips written"]:
        raise InputError(f"none of the {len(job.clips)} clips is kept: {job.at('report.json')} says why")
    run(shards.write_shard, job, shards.shard_files(job), "writing")
    shards.finish(job, out)


def beam_options() -> list[str]:
    """Splits --beam_options as a shell does. Raises InputError."""
    try:
        return shlex.split(BEAM_OPTIONS.value)
    except ValueError as error:
        raise InputError(f"--beam_options={BEAM_OPTIONS.value}: {error}: close every quote") from None


def show(report: dict) -> None:
    """Prints what the report says."""
    counts = ", ".join(f"{count} {kind}" for kind, count in report["dropped"].items() if count) or "nothing"
    print(f"{report['clips written']} clips from {report['clips read']}; dropped: {counts}")
    for drop in report["drops"][:SHOWN]:
        print(f"  {drop['kind']}: {drop['clip']} ({drop['why']})")
    if len(report["drops"]) > SHOWN:
        print(f"  and {len(report['drops']) - SHOWN} more, in report.json")


def run(step: Callable[[shards.Job, int], None], job: shards.Job, files: Sequence[Path], what: str) -> None:
    """Runs step(job, n) for every n whose file is not there yet, by Beam."""
    left = [n for n, file in enumerate(files) if not file.exists()]
    if not left:
        return
    options, log = beam_options(), job.at("beam.log")
    if not any(option.startswith("--runner") for option in options):
        workers = min(WORKERS.value or os.cpu_count() or 1, len(left))
        # DirectRunner would load another runner down from the net first; this is the one it falls back to.
        options += ["--runner=FnApiRunner", f"--direct_num_workers={workers}"]
        options += [f"--direct_running_mode={'multi_processing' if workers > 1 else 'in_memory'}"]
    try:
        with aside(log) as terminal, progress(files, what, terminal), no_waiting_for_the_dead(terminal, log):
            import apache_beam as beam
            from apache_beam.options.pipeline_options import PipelineOptions

            with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
                each = pipeline | beam.Create(left) | beam.Reshuffle()
                _ = each | what.title() >> beam.Map(functools.partial(step, job))
    except (Exception, SystemExit) as error:  # by the runner: wrong options, a worker that died, a full disk
        with open(log, "a") as file:
            traceback.print_exc(file=file)
        reason = (str(error).strip() or repr(error)).splitlines()[-1][:200]
        raise InputError(f"{what} stopped ({reason}): {log} says more; the same command goes on from here") from error
    missing = [file for file in files if not file.exists()]
    if missing:
        raise InputError(f"{len(missing)} of {len(files)} files are not there ({missing[0]}): do all workers see them?")


@contextlib.contextmanager
def aside(path: Path) -> Iterator[TextIO]:
    """Sends stderr of this process and its workers to a file; yields the terminal that it would have gone to."""
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w") as terminal, open(path, "a") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield terminal
        finally:
            os.dup2(terminal.fileno(), 2)


@contextlib.contextmanager
def no_waiting_for_the_dead(terminal: TextIO, log: Path) -> Iterator[None]:
    """Ends the program when a worker process dies: Beam hears of it in a thread of its own, and waits for ever."""

    def heard(args: threading.ExceptHookArgs) -> None:
        known(args)
        if "Worker subprocess exited" in str(args.exc_value):
            reason = f"{args.exc_value}: out of memory, or a clip that breaks its decoder"
            print(f"error: {reason}; {log} says more, the same command goes on from here", file=terminal, flush=True)
            os._exit(1)

    known, threading.excepthook = threading.excepthook, heard
    try:
        yield
    finally:
        threading.excepthook = known


@contextlib.contextmanager
def progress(files: Sequence[Path], what: str, terminal: TextIO) -> Iterator[None]:
    """Shows a bar of how many of the files are there, on a terminal."""
    from tqdm import tqdm

    done = threading.Event()

    def watch() -> None:
        with tqdm(total=len(files), desc=what, unit="file", file=terminal, disable=None) as bar:
            while not bar.disable:
                stop = done.wait(2.0)
                bar.n = sum(file.exists() for file in files)
                bar.refresh()
                if stop:
                    break

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    cli.start(main)
