"""Many clients at once against a server of `vidjax.serve`: is anything lost, and does anybody see another's video?

    python -m vidjax.serve --model RUN --folder FOLDER --require_keys
    python tests/benchmarks/serving_load.py --url http://127.0.0.1:8000 --folder FOLDER --clients 50 --seconds 300

Each client has a key of its own, which this program adds to FOLDER. It asks for a video, watches it, takes it, looks
for it in its list, tries to take another client's, and begins again; a tenth of the videos are cancelled. A client that
is told to wait waits. Prints one JSON object.
"""

import argparse
import collections
import json
import random
import threading
import time
from pathlib import Path

import httpx2 as httpx
import numpy as np

from vidjax.serving.database import Database
from vidjax.serving.keys import Keys


class Client:
    """One of many; `told` counts what happened to all of them."""

    def __init__(self, url: str, key: str, number: int, ask: dict, told: collections.Counter, known: list[str]):
        headers = {"authorization": f"Bearer {key}"}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60)
        self.random, self.ask, self.told, self.known = random.Random(number), ask, told, known
        self.number, self.own, self.times = number, [], []

    def get(self, path: str) -> httpx.Response:
        began = time.perf_counter()
        response = self.http.get(path)
        self.times.append(time.perf_counter() - began)
        return response

    def run(self, until: float) -> None:
        while time.monotonic() < until:
            try:
                self.make()
            except Exception as error:
                self.told[f"error {type(error).__name__} {error}"[:100]] += 1

    def make(self) -> None:
        fields = {**self.ask, "seed": self.random.randrange(2**31)}
        made = self.http.post("/v1/videos", json=fields)
        if made.status_code == 429:
            self.told["asked to wait"] += 1
            assert int(made.headers["retry-after"]) >= 1
            time.sleep(min(int(made.headers["retry-after"]), 2) * self.random.random())
            return
        id = made.raise_for_status().json()["id"]
        self.own.append(id)
        self.known.append(id)
        self.told["asked"] += 1
        cancelled = self.random.random() < 0.1 and self.http.post(f"/v1/videos/{id}/cancel").is_success
        while (video := self.get(f"/v1/videos/{id}").raise_for_status().json())["status"] in ("queued", "in_progress"):
            time.sleep(0.2)
        self.told["cancelled" if cancelled and video["status"] == "cancelled" else video["status"]] += 1
        if video["status"] == "completed":
            content = self.get(f"/v1/videos/{id}/content").raise_for_status().content
            self.told["whole"] += content[4:8] == b"ftyp" and video["seed"] == fields["seed"]
        other = self.random.choice(self.known)
        if other not in self.own:
            self.told[f"of another: {self.get(f'/v1/videos/{other}/content').status_code}"] += 1
        listed = [each["id"] for each in self.get("/v1/videos?limit=100").json()["data"]]
        self.told["lists that are not one's own"] += listed != self.own[::-1][:100]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--ask", type=json.loads, default={"prompt": "a fox"}, help="Fields of each request, as JSON.")
    args = parser.parse_args()
    keys = Keys(Database(args.folder / "jobs.sqlite"))
    tokens = [keys.add(f"load-{time.time_ns()}-{n}") for n in range(args.clients)]
    told, known, until = collections.Counter(), [], time.monotonic() + args.seconds
    clients = [Client(args.url, token, n, args.ask, told, known) for n, token in enumerate(tokens)]
    threads = [threading.Thread(target=client.run, args=(until,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = np.array([each for client in clients for each in client.times])
    quantiles = {f"seconds of a GET, {q}%": round(float(np.percentile(times, q)), 3) for q in (50, 95, 99, 100)}
    served = {client.number: len(client.own) for client in clients}
    fair = {"videos of a client": [min(served.values()), max(served.values())]}
    print(json.dumps({"clients": args.clients, "seconds": args.seconds, **told, **fair, **quantiles}, indent=1))


if __name__ == "__main__":
    main()
