"""A server of a tiny folder in this process: its worker is called by the tests, or runs in a thread."""

import socket
import threading
import time
from types import SimpleNamespace

import httpx2 as httpx
import pytest
import uvicorn
from tiny_folder import MIDDLE, write_folder

from vidjax.generation.options import SampleConfig
from vidjax.generation.pretrained import load_generator
from vidjax.serving.app import make_app
from vidjax.serving.database import Database
from vidjax.serving.jobs import Jobs
from vidjax.serving.keys import Keys
from vidjax.serving.limits import Limits
from vidjax.serving.worker import Worker, make_card

LIMITS = Limits(frames=4, pixels=32 * 32, steps=200, upload=2**20, queue=3, tune_steps=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("models") / "fox", unet=MIDDLE)


@pytest.fixture(scope="module")
def generator(folder):
    how = SampleConfig(sampler="ddim", num_steps=3, guidance_scale=2.0, fps=4.0)
    return load_generator(folder, frames=2, defaults=how)


@pytest.fixture(scope="module")
def serving(generator, tmp_path_factory):
    """Jobs, keys, a worker, and the address of a server that answers in a thread."""
    database = Database(tmp_path_factory.mktemp("served") / "jobs.sqlite")
    jobs, keys = Jobs(database, LIMITS), Keys(database)
    app = make_app(jobs, keys, {"fox": make_card("fox", generator, "images")})
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs=dict(sockets=[listener]))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = "http://{}:{}".format(*listener.getsockname())
    yield SimpleNamespace(jobs=jobs, keys=keys, worker=Worker(jobs, {"fox": generator}, "one"), url=url)
    server.should_exit = True
    thread.join()


@pytest.fixture
def client(serving, request):
    """Makes clients with a new key each; at the end nothing waits."""
    made = []

    def make(rate=None):
        token = serving.keys.add(f"user{len(made)}-{abs(hash(request.node.name))}", rate)
        made.append(httpx.Client(base_url=serving.url, headers={"authorization": f"Bearer {token}"}, timeout=30))
        made[-1].token = token
        return made[-1]

    yield make
    for one in made:
        for video in one.get("/v1/videos?limit=100").json()["data"]:
            one.delete(f"/v1/videos/{video['id']}")
        one.close()
