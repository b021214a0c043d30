"""`python -m vidjax.serve` as a user starts it, kills it, and starts it again."""

import os
import signal
import subprocess
import sys
import time

import httpx2 as httpx
import pytest
from starts import Process, program


def start(folder, model, env):
    """A server that answers, and its client."""
    flags = ("--port=0", "--nowarm_up", f"--folder={folder}", f"--model=fox={model}")
    process = Process("serve", flags, env)
    while "http://" not in (said := process.files[0].read_text()):
        assert process.poll() is None, process.files[1].read_text()
        time.sleep(0.05)
    return process, httpx.Client(base_url=said.split()[-1], timeout=60)


def watch(client, id, until):
    while not until(video := client.get(f"/v1/videos/{id}").json()):
        time.sleep(0.02)
    return video


def test_killed_and_started_again_it_makes_the_same_video(folder, env, tmp_path):
    process, client = start(tmp_path / "served", folder, env)
    ask = dict(prompt="a fox", seed=5, steps=60)
    ids = [client.post("/v1/videos", json=ask).json()["id"] for _ in range(2)]
    watch(client, ids[0], lambda video: video["step"] > 1)
    process.kill()
    process.communicate()
    with pytest.raises(httpx.TransportError):  # the processes that it started follow
        while True:
            client.get("/health")
            time.sleep(0.05)

    process, client = start(tmp_path / "served", folder, env)
    done = [watch(client, id, lambda video: video["status"] not in ("queued", "in_progress")) for id in ids]
    assert [video["status"] for video in done] == ["completed"] * 2, done
    again, uncut = (client.get(f"/v1/videos/{id}/content").content for id in ids)
    assert again == uncut
    assert client.get("/v1/videos", headers={"host": "elsewhere.example"}).status_code == 403
    other = program("serve", "--port=0", f"--folder={tmp_path / 'served'}", f"--model=fox={folder}", env=env)
    assert other.returncode == 1 and "--folder" in other.stderr and "in use by process" in other.stderr
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in (tmp_path / "served").iterdir() if file.is_file())


def test_a_process_whose_parent_ended_before_it_looked_ends():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    code = f"import time; from vidjax.serving.parent import watch_parent; watch_parent({gone.pid}); time.sleep(60)"
    assert subprocess.run([sys.executable, "-c", code], timeout=50).returncode == 1


def test_keys(env, tmp_path):
    def keys(*more):
        return program("serve", "keys", *more, f"--folder={tmp_path}", env=env)

    token = keys("add", "ann", "--rate=10/min").stdout.strip()
    assert token.startswith("vj-") and keys("add", "ann").returncode == 1
    assert keys("list").stdout.split()[::2] == ["ann", "10/min"] and token not in keys("list").stdout
    assert "10 a minute" in keys("add", "bob", "--rate=10 a minute").stderr
    assert keys("remove", "ann").returncode == 0 and keys("remove", "ann").returncode == 1


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ([], "--model is missing"),
        (["--model=nowhere"], "nowhere"),
        (["--model=a/fox", "--model=b/fox"], "there is a model fox already"),
        (["--model=x", "--host=0.0.0.0"], "nobody has a key"),
        (["--model=x", "--tls_cert=c.pem"], "go together"),
    ],
)
def test_a_wrong_start_is_one_line(env, tmp_path, flags, word):
    done = program("serve", *flags, "--port=0", f"--folder={tmp_path / 'served'}", env=env)
    assert done.returncode == 1 and word in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_file_that_is_no_database_is_left_alone(env, tmp_path):
    (tmp_path / "jobs.sqlite").write_bytes(b"no database" * 100)
    done = program("serve", "--model=x", "--port=0", f"--folder={tmp_path}", env=env)
    assert done.returncode == 1 and "jobs.sqlite" in done.stderr and os.path.getsize(tmp_path / "jobs.sqlite") == 1100
