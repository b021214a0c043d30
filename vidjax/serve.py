"""Serves trained models over HTTP:

`python -m vidjax.serve --model RUN_OR_FOLDER`, and `python -m vidjax.serve keys add NAME` for those who may use it.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from vidjax import cli
from vidjax.errors import InputError
from vidjax.runtime.outputs import open_folder

if TYPE_CHECKING:
    from vidjax.serving.jobs import Jobs
    from vidjax.serving.keys import Keys

MODEL = flags.DEFINE_multi_string(
    "model", [], "[NAME=]RUN_OR_FOLDER: a run of vidjax.main, or a folder in the layout of diffusers; several serve."
)
FOLDER = flags.DEFINE_string("folder", "served", "Where jobs, keys and videos are kept, on a disk of this machine.")
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0: all of this machine.")
PORT = flags.DEFINE_integer("port", 8000, "Port to listen on; 0: any.", lower_bound=0, upper_bound=65535)
REQUIRE_KEYS = flags.DEFINE_bool("require_keys", None, "Serve holders of keys only; default: unless --host is local.")
TLS_CERT = flags.DEFINE_string("tls_cert", None, "Certificate (PEM) for https, with --tls_key.")
TLS_KEY = flags.DEFINE_string("tls_key", None, "Its private key (PEM).")
DEVICES = flags.DEFINE_list("devices", None, "Numbers of GPUs, a worker each; default: one worker, on all devices.")
BATCH = flags.DEFINE_integer("batch", 1, "Videos of one kind that are made at once.", lower_bound=1, upper_bound=256)
FRAMES = flags.DEFINE_integer("frames", None, "Frames of a folder's usual video; default: 1.", lower_bound=1)
INFLATE = flags.DEFINE_string("inflate", None, "What frames of an image folder see: tuned, zero_shot.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the parameters of a folder.")
WARM_UP = flags.DEFINE_bool("warm_up", True, "Compile what a model's usual video needs before the first request.")
MAX_FRAMES = flags.DEFINE_integer("max_frames", 64, "Most frames of a video.", lower_bound=1)
MAX_PIXELS = flags.DEFINE_integer("max_pixels", 2**20, "Most pixels of a frame.", lower_bound=1)
MAX_STEPS = flags.DEFINE_integer("max_steps", 100, "Most steps of the sampler.", lower_bound=1)
MAX_UPLOAD = flags.DEFINE_integer("max_upload", 2**26, "Most bytes of an uploaded file.", lower_bound=1)
QUEUE = flags.DEFINE_integer("queue", 100, "Most videos that wait.", lower_bound=1)
TUNE = flags.DEFINE_bool("tune", False, "Let users tune the folders that are served, on clips and pictures of theirs.")
MAX_TUNE_STEPS = flags.DEFINE_integer("max_tune_steps", 500, "Most steps of tuning.", lower_bound=1)
MAX_TUNED = flags.DEFINE_integer("max_tuned", 10, "Most tuned models of a user.", lower_bound=1, upper_bound=100)
REPORTS = flags.DEFINE_bool(
    "reports", None, "Show reports of runs, which name folders; default: unless keys are wanted."
)
KEEP_HOURS = flags.DEFINE_float("keep_hours", 24.0, "How long a finished video is kept.", lower_bound=0.001)
RATE = flags.DEFINE_string("rate", None, "keys add: at most so many videos, such as 10/min.")
QUOTA = flags.DEFINE_string("quota", None, "keys add: and so many in a longer time, such as 100/day.")

BIND_SECONDS = 5.0  # for a server that was killed to let go of the port and the folder
DEATHS, DEATH_SECONDS = 5, 60.0  # of workers, in so long, after which the server gives up
END_SECONDS = 10.0  # for requests that are being answered
TUNER = "tuner"
VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def main() -> None:
    """Starts a process per device that makes videos, and one that answers. Raises InputError."""
    models = check_flags()
    folder = open_kept()
    with listening() as listener:
        lock(folder)
        jobs, keys = open_jobs(folder)
        require = REQUIRE_KEYS.value if REQUIRE_KEYS.value is not None else not is_local(HOST.value)
        if require and not keys.list():
            raise InputError("nobody has a key: python -m vidjax.serve keys add NAME, or --host=127.0.0.1")
        jobs.recover()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        reports = not require if REPORTS.value is None else REPORTS.value
        Supervisor(jobs, keys, models, listener, require, reports).run()


class Supervisor:
    """The process that starts the others and does nothing else, so that it may fork at any time."""

    def __init__(
        self,
        jobs: "Jobs",
        keys: "Keys",
        models: dict[str, str],
        listener: socket.socket,
        require: bool,
        reports: bool = False,
    ):
        self.jobs, self.keys, self.models = jobs, keys, models
        self.listener, self.require, self.reports = listener, require, reports
        self.cards: dict[str, Any] = {}
        method = "fork" if sys.platform.startswith("linux") else "spawn"
        self.context: Any = multiprocessing.get_context(method)
        self.workers: dict[str, Any] = {}
        self.server: Any = None
        self.deaths: list[float] = []

    def run(self) -> None:
        """Serves until a signal comes. Raises InputError if a model can't be loaded, or workers die one after the
        other."""
        try:
            devices = DEVICES.value or [None]
            waiting = [self._start_worker(f"worker-{n}", device) for n, device in enumerate(devices)]
            self.cards = [receive_cards(pipe) for pipe in waiting][-1]
            if self.jobs.limits.tune_steps:
                self._start_tuner()
            shown = self.models if self.reports else None
            how = (self.jobs, self.keys, self.cards, self.listener, self.require, shown, TLS_CERT.value, TLS_KEY.value)
            self.server = self.context.Process(target=answer, args=how)
            self.server.start()
            while True:
                self._watch()
        finally:
            for process in (self.server, *[worker for worker, _ in self.workers.values()]):
                if process is not None:
                    end(process)

    def _start_worker(self, name: str, device: str | None) -> Connection:
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(
            target=work,
            args=(self.jobs, self.models, name, device, BATCH.value, options_of_folders(), WARM_UP.value, theirs),
        )
        process.start()
        theirs.close()
        self.workers[name] = (process, device)
        return ours

    def _start_tuner(self) -> None:
        process = self.context.Process(target=tune, args=(self.jobs, self.models, self.cards))
        process.start()
        self.workers[TUNER] = (process, None)

    def _watch(self) -> None:
        """Waits until a process ends, and starts a worker again, its job first. Raises InputError."""
        names = {process.sentinel: name for name, (process, _) in self.workers.items()}
        for sentinel in wait([*names, self.server.sentinel]):
            if sentinel not in names:
                raise InputError("the server ended; what it printed says why")
            name = names[sentinel]
            self.jobs.recover(name)
            now = time.monotonic()
            self.deaths = [at for at in self.deaths if now - at < DEATH_SECONDS] + [now]
            if len(self.deaths) >= DEATHS:
                raise InputError(f"{DEATHS} workers ended within {DEATH_SECONDS:g} s; what they printed says why")
            print(f"warning: {name} ended, and is started again", file=sys.stderr, flush=True)
            self._start_tuner() if name == TUNER else self._start_worker(name, self.workers[name][1])


def work(
    jobs: "Jobs",
    models: dict[str, str],
    name: str,
    device: str | None,
    batch: int,
    options: dict[str, Any],
    warm_up: bool,
    pipe: Connection,
) -> None:
    """Loads the models, tells what they are, and makes videos until the process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if device is not None:
        os.environ.update(dict.fromkeys(VISIBLE, device))
    from vidjax.serving import worker
    from vidjax.serving.parent import watch_parent

    watch_parent()
    worker.quiet_stops()
    try:
        generators = {name: worker.open_model(path, **options) for name, path in models.items()}
        made = worker.Worker(jobs, generators, name, batch)
        if warm_up:
            made.warm_up()
    except InputError as error:
        pipe.send(str(error))
        sys.exit(1)
    with contextlib.suppress(BrokenPipeError):  # one that was started again is not asked
        tunes = {name: worker.find_tuning(path) for name, path in models.items()}
        pipe.send({name: worker.make_card(name, each, tunes[name]) for name, each in generators.items()})
    pipe.close()
    made.run()


def tune(jobs: "Jobs", models: dict[str, str], cards: dict[str, Any]) -> None:
    """Tunes models until the process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from vidjax.serving.parent import watch_parent
    from vidjax.serving.tuner import Tuner

    watch_parent()
    Tuner(jobs, models, cards, TUNER).run()


def receive_cards(pipe: Connection) -> dict[str, Any]:
    """Waits for what a worker says of its models. Raises InputError if it could not load them."""
    try:
        found = pipe.recv()
    except EOFError:
        raise InputError("a worker ended while it loaded its models; what it printed says why") from None
    if isinstance(found, str):
        raise InputError(found)
    return found


def answer(
    jobs: "Jobs",
    keys: "Keys",
    cards: dict[str, Any],
    listener: socket.socket,
    require_keys: bool,
    shown: dict[str, str] | None,
    cert: str | None,
    key: str | None,
) -> None:
    """Answers requests until the process ends."""
    import uvicorn

    from vidjax.serving.app import make_app
    from vidjax.serving.parent import watch_parent

    watch_parent()
    app = make_app(jobs, keys, cards, require_keys=require_keys, shown=shown)
    how = dict(log_level="warning", server_header=False, proxy_headers=False, ssl_certfile=cert, ssl_keyfile=key)
    config = uvicorn.Config(app, timeout_graceful_shutdown=int(END_SECONDS / 2), **how)
    host, port = listener.getsockname()[:2]
    print(f"{', '.join(cards)} at http{'s' if cert else ''}://{host}:{port}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def end(process: Any) -> None:
    """Ends a process, if need be at once."""
    process.terminate()
    process.join(END_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()


def check_flags() -> dict[str, str]:
    """Returns the models by name. Raises InputError for flags that do not go together."""
    models: dict[str, str] = {}
    for text in MODEL.value:
        name, equals, path = text.partition("=")
        if not equals or "/" in name:
            name, path = Path(text).resolve().name, text
        if not name or not path:
            raise InputError(f"--model={text} is not [NAME=]RUN_OR_FOLDER")
        if name in models:
            raise InputError(f"--model={text}: there is a model {name} already; name this one, --model=NAME={path}")
        models[name] = path
    if not models:
        raise InputError("--model is missing: name a run or a folder, such as --model=runs/lvdm")
    if bool(TLS_CERT.value) != bool(TLS_KEY.value):
        raise InputError("--tls_cert and --tls_key go together; give both or none")
    for flag in (TLS_CERT, TLS_KEY):
        if flag.value and not os.path.isfile(flag.value):
            raise InputError(f"--{flag.name}={flag.value} is not a file: name one in PEM")
    return models


def options_of_folders() -> dict[str, Any]:
    """How folders are loaded."""
    return dict(frames=FRAMES.value, inflate=INFLATE.value, dtype=DTYPE.value)


def open_kept() -> Path:
    """Opens the folder of the server, which nobody else may read. Raises InputError."""
    os.umask(0o077)
    folder = Path(open_folder(FOLDER.value, "--folder", disk=True))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def lock(folder: Path) -> None:
    """Locks the folder until this process and those that it starts have ended. Raises InputError if another server has
    it."""
    from vidjax.runtime.workdir import open_workdir

    until = time.monotonic() + BIND_SECONDS
    while True:
        try:
            return open_workdir(folder)
        except InputError as error:
            if time.monotonic() > until:
                raise InputError(str(error).replace("--workdir", "--folder")) from None
            time.sleep(0.1)


def open_jobs(folder: Path) -> "tuple[Jobs, Keys]":
    """Opens the jobs and the keys in a folder. Raises InputError if the file there is none of ours, or the extra is
    not installed."""
    import sqlite3

    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is missing: pip install 'vidjax[serve]'") from None
    from vidjax.serving.database import Database
    from vidjax.serving.jobs import Jobs
    from vidjax.serving.keys import Keys
    from vidjax.serving.limits import Limits

    try:
        database = Database(folder / "jobs.sqlite")
    except sqlite3.DatabaseError as error:
        raise InputError(f"{folder / 'jobs.sqlite'} can't be used ({error}): name another --folder") from None
    limits = Limits(
        MAX_FRAMES.value,
        MAX_PIXELS.value,
        MAX_STEPS.value,
        MAX_UPLOAD.value,
        QUEUE.value,
        KEEP_HOURS.value,
        MAX_TUNE_STEPS.value if TUNE.value else 0,
        MAX_TUNED.value,
    )
    return Jobs(database, limits), Keys(database)


def is_local(host: str) -> bool:
    """Whether a server at this address is reached from this machine alone."""
    from vidjax.serving.guard import is_local

    return is_local(host)


@contextlib.contextmanager
def listening() -> Iterator[socket.socket]:
    """Yields a socket that listens at --host and --port. Raises InputError if it can't."""
    until = time.monotonic() + BIND_SECONDS
    while True:
        try:
            family = socket.AF_INET6 if ":" in HOST.value else socket.AF_INET
            listener = socket.create_server((HOST.value, PORT.value), family=family, backlog=256)
            break
        except OSError as error:
            if time.monotonic() > until or isinstance(error, socket.gaierror):
                raise InputError(
                    f"--host={HOST.value} --port={PORT.value} can't be listened on ({error.strerror}): name another"
                ) from None
            time.sleep(0.1)
    with listener:
        yield listener


def manage_keys(_: str, action: str, name: str = "") -> None:
    """Adds, lists or removes keys. Raises InputError."""
    keys = open_jobs(open_kept())[1]
    if action == "add":
        print(keys.add(name, RATE.value, QUOTA.value))
        print("this is the only time that the key is shown", file=sys.stderr)
    elif action == "remove":
        keys.remove(name)
    elif action == "list":
        for key in keys.list():
            since = time.strftime("%Y-%m-%d", time.gmtime(float(key["created"] or 0)))
            print("\t".join([str(key["name"]), since, *(str(key[each] or "-") for each in ("rate", "quota"))]))
    else:
        raise InputError(f"keys {action}: there are keys add NAME, keys remove NAME, keys list")


if __name__ == "__main__":
    if sys.argv[1:2] == ["keys"]:
        cli.start(manage_keys, "keys", "add, remove or list", *(() if sys.argv[2:3] == ["list"] else ("a NAME",)))
    else:
        cli.start(main)
