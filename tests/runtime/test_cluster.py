"""Processes that do not meet end with one line, in the time that is given."""

import socket
import time

import pytest
from starts import start_each

from vidjax.errors import InputError
from vidjax.runtime.cluster import check_flags, explain_unreached


@pytest.mark.parametrize(
    "text", ["nonsense", ":1", "host:", "host:99999", "host:0", "host:x", "a b:1", "::1:80", "http://h:1"]
)
def test_a_coordinator_is_a_host_and_a_port(text):
    with pytest.raises(InputError, match="is no HOST:PORT"):
        check_flags(text, 2, 1)


def test_a_process_is_one_of_them():
    for good in ("host:1", "10.0.0.1:8476", "[::1]:80", "a-b.svc.cluster.local:65535"):
        check_flags(good, 2, 1)
    check_flags(None, None, None)
    with pytest.raises(InputError, match="--process_id=2 is none of --processes=2"):
        check_flags("host:1", 2, 2)


def test_why_a_coordinator_is_not_reached():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert "refused" in explain_unreached(address)
        server.listen()
        assert explain_unreached(address) == ""
    assert explain_unreached(None) == ""


def test_a_process_alone_ends_with_one_line(env):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    case = ["--config=tests/tiny.py:pixels", f"--coordinator={address}", "--processes=2", "--timeout=2"]
    began = time.monotonic()
    for i, done in enumerate(start_each("main", [[*case, f"--process_id={i}"] for i in (1, 0)], env)):
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 1 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
        assert f"process {1 - i} has not met the others in 2 s" in errors[0] and "--timeout" in errors[0]
        assert ("refused" in errors[0]) == (i == 0)
    assert time.monotonic() - began < 60
