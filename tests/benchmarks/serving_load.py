"""Many clients at once against a server of `vidjax.serve` that is killed and started again: is anything lost, made
otherwise, or seen by somebody else? And does its memory grow?

    python tests/benchmarks/serving_load.py --model RUN --folder FOLDER --clients 50 --seconds 300 --kill_at 60 180
    python tests/benchmarks/serving_load.py --model RUN --folder FOLDER --memory 1000

Each client has a key of its own. It asks for a video, watches it, takes it, looks for it in its list, tries to take
another client's, and begins again; a tenth of the videos are cancelled. A client that is told to wait waits, and one
that finds the server away comes back and repeats what it asked, under the same Idempotency-Key. With --kill_at the
server gets SIGKILL after so many seconds, and is started again at once.

When all is made, each video is taken again; those that were in hand at a kill, and a few others, are made once more,
alone. With --memory one client has so many videos made instead, and the resident memory of the server's processes is
noted every 100. Prints one JSON object; ends with 1 if anything was lost, made otherwise or seen.
"""

import argparse
import collections
import datetime
import hashlib
import json
import os
import random
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import httpx2 as httpx
import numpy as np

from vidjax.evaluation import results
from vidjax.serving.database import Database
from vidjax.serving.jobs import CANCELLED, DONE, RUNNING, WAITING
from vidjax.serving.keys import Keys

AWAY = httpx.NetworkError, httpx.RemoteProtocolError  # refused, or broken off
ENDS_SECONDS = 1800  # for what waits when the clients stop
ALONE = 5  # videos of each kind that are made once more
OPEN = WAITING, RUNNING
WRONG = "lost", "seen by another", "not the same twice", "made otherwise", "lists that are not one's own"


class Server:
    """A server that this program starts, kills and starts again; it says what in FOLDER.log."""

    def __init__(self, model: str, folder: Path, more: list[str]):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", folder.with_suffix(".log")
        self.command = [sys.executable, "-m", "vidjax.serve", f"--model={model}", f"--folder={folder}"]
        self.command += [f"--port={port}", "--require_keys", *more]
        self.database = Database(folder / "jobs.sqlite")

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)

    def kill(self) -> list[str]:
        """Kills the server; returns the jobs that it had in hand."""
        others = self.processes()[1:]
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        while any(alive(each) for each in others):  # they follow it
            time.sleep(0.05)
        with self.database.read() as connection:
            return [row["id"] for row in connection.execute("select id from jobs where status = ?", (RUNNING,))]

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()

    def processes(self) -> list[int]:
        found = [self.process.pid]
        for each in found:
            for file in Path(f"/proc/{each}/task").glob("*/children"):
                found += map(int, file.read_text().split())
        return found

    def megabytes(self) -> list[float]:
        """Resident memory of each process, the oldest first."""
        pages = [int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in self.processes()]
        return [round(count * os.sysconf("SC_PAGE_SIZE") / 2**20, 1) for count in pages]


def alive(process: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Client:
    """One of many; `told` counts what happened to it."""

    def __init__(self, url: str, key: str, number: int, ask: dict, known: list[str]):
        headers = {"authorization": f"Bearer {key}"}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=600)
        self.random, self.ask, self.known = random.Random(number), ask, known
        self.told = collections.Counter(dict.fromkeys(WRONG, 0))
        self.asked: dict[str, dict] = {}  # the fields of each video
        self.cancelled: set[str] = set()
        self.taken: dict[str, str] = {}  # the hash of each
        self.times: list[float] = []

    def send(self, method: str, path: str, **more) -> httpx.Response:
        """Sends a request until there is an answer."""
        until = time.monotonic() + ENDS_SECONDS
        while True:
            began = time.perf_counter()
            try:
                response = self.http.request(method, path, **more)
                self.times += [time.perf_counter() - began] * (method == "GET")
                return response
            except AWAY:
                self.told["server away"] += 1
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)

    def run(self, until: float) -> None:
        while time.monotonic() < until:
            try:
                self.make()
            except Exception as error:
                self.told[f"error {type(error).__name__} {error}"[:100]] += 1
                time.sleep(1)

    def order(self, fields: dict) -> str | None:
        """Asks for a video; None if there is no room for it."""
        made = self.send("POST", "/v1/videos", json=fields, headers={"idempotency-key": secrets.token_hex(8)})
        if made.status_code == 429:
            self.told["asked to wait"] += 1
            assert int(made.headers["retry-after"]) >= 1
            time.sleep(min(int(made.headers["retry-after"]), 2) * self.random.random())
            return None
        id = made.raise_for_status().json()["id"]
        self.asked[id] = fields
        self.told["asked"] += 1
        return id

    def watch(self, id: str) -> dict:
        """Waits for the end of a video."""
        while (video := self.send("GET", f"/v1/videos/{id}").raise_for_status().json())["status"] in OPEN:
            time.sleep(0.2)
        return video

    def take(self, id: str) -> str:
        """Returns the hash of a video."""
        content = self.send("GET", f"/v1/videos/{id}/content").raise_for_status().content
        assert content[4:8] == b"ftyp"
        return hashlib.sha256(content).hexdigest()

    def make(self) -> None:
        fields = {**self.ask, "seed": self.random.randrange(2**31)}
        if (id := self.order(fields)) is None:
            return
        self.known.append(id)
        if self.random.random() < 0.1 and self.send("POST", f"/v1/videos/{id}/cancel").is_success:
            self.cancelled.add(id)
        video = self.watch(id)
        assert video["seed"] == fields["seed"]
        if video["status"] == DONE:
            self.taken[id] = self.take(id)
        other = self.random.choice(self.known)
        if other not in self.asked:
            self.told["tries to take another's"] += 1
            self.told["seen by another"] += self.send("GET", f"/v1/videos/{other}/content").status_code != 404
        listed = [each["id"] for each in self.send("GET", "/v1/videos?limit=100").raise_for_status().json()["data"]]
        self.told["lists that are not one's own"] += listed != [*self.asked][::-1][:100]

    def check(self) -> None:
        """Counts what became of all that was asked for, and takes each video again."""
        for id in self.asked:
            found = self.send("GET", f"/v1/videos/{id}")
            status = found.json()["status"] if found.is_success else "gone"
            self.told[status] += 1
            self.told["lost"] += status not in (DONE, *OPEN) and not (status == CANCELLED and id in self.cancelled)
            if status == DONE:
                self.told["taken twice"] += id in self.taken
                self.told["not the same twice"] += self.taken.setdefault(id, again := self.take(id)) != again


def load(server: Server, args: argparse.Namespace) -> dict:
    """Lets clients work while the server is killed; returns what was seen."""
    keys = Keys(server.database)
    tokens = [keys.add(f"load-{time.time_ns()}-{n}") for n in range(args.clients + 1)]
    known: list[str] = []
    *clients, alone = [Client(server.url, token, n, args.ask, known) for n, token in enumerate(tokens)]
    server.start()
    alone.send("GET", "/v1/models").raise_for_status()
    began, hands = time.monotonic(), []
    threads = [threading.Thread(target=client.run, args=(began + args.seconds,)) for client in clients]
    for thread in threads:
        thread.start()
    for second in args.kill_at:
        time.sleep(max(0, began + second - time.monotonic()))
        hands += server.kill()
        server.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.check()
    owners = {id: client for client in clients for id in client.taken}
    others = random.Random(0).sample(left := sorted(set(owners) - set(hands)), min(ALONE, len(left)))
    told, made = sum_of(client.told for client in clients), {}
    for name, ids in (("in hand at a kill", [id for id in hands if id in owners]), ("of the others", others)):
        same = [alone.take(alone.watch(alone.order(owners[id].asked[id]))["id"]) == owners[id].taken[id] for id in ids]
        made[f"{name}, made again alone"] = {"videos": len(ids), "the same to the byte": sum(same)}
        told["made otherwise"] += len(same) - sum(same)
    times = np.array([each for client in clients for each in client.times])
    quantiles = {f"seconds of a GET, {q}%": round(float(np.percentile(times, q)), 3) for q in (50, 95, 99, 100)}
    served = [len(client.asked) for client in clients]
    how = {"clients": args.clients, "seconds": args.seconds, "killed at": args.kill_at, "in hand then": len(hands)}
    return how | dict(told) | made | {"videos of a client": [min(served), max(served)]} | quantiles


def sum_of(counts: Iterable[collections.Counter]) -> collections.Counter:
    """Adds counts, also those of nothing."""
    found: collections.Counter = collections.Counter()
    for each in counts:
        found.update(each)
    return found


def remember(server: Server, args: argparse.Namespace) -> dict:
    """Has many videos made, one after the other; returns the server's memory by their number."""
    client, found = Client(server.url, Keys(server.database).add(f"memory-{time.time_ns()}"), 0, args.ask, []), {}
    server.start()
    for number in range(1, args.memory + 1):
        client.make()
        if number % 100 == 0:
            found[number] = server.megabytes()
            print(number, found[number], file=sys.stderr, flush=True)
    client.check()
    return {"resident megabytes of supervisor, worker and server after so many videos": found} | dict(client.told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", type=Path, required=True, help="Of the server: a new one.")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--kill_at", type=float, nargs="*", default=[])
    parser.add_argument("--memory", type=int, help="Videos of the run that looks at memory.")
    parser.add_argument("--ask", type=json.loads, default={"prompt": "a fox"}, help="Fields of each request, as JSON.")
    parser.add_argument("--json", type=Path, help="A file to which the figures are added.")
    parser.add_argument("--machine", default="")
    args, more = parser.parse_known_args()
    args.folder.mkdir(parents=True)
    server = Server(args.model, args.folder, more)
    try:
        found = remember(server, args) if args.memory else load(server, args)
    finally:
        server.end()
    packages = {name: version(name) for name in ("fastapi", "starlette", "uvicorn", "gradio")}
    how = {"command": shlex.join(["python", "tests/benchmarks/serving_load.py", *sys.argv[1:]])}
    how |= {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "machine": args.machine}
    figures = {"memory" if args.memory else "load": how | {"versions": results.versions() | packages} | found}
    print(json.dumps(figures, indent=1))
    if args.json:
        before = json.loads(args.json.read_text()) if args.json.exists() else {}
        args.json.write_text(json.dumps(before | figures, indent=1) + "\n")
    sys.exit(any(value and (name in WRONG or name.startswith("error")) for name, value in found.items()))


if __name__ == "__main__":
    main()
