"""Processes that were started differently do not train together."""

import pytest
from runtime.test_processes import FLAGS, end, start
from starts import Process

from vidjax.runtime.alike import describe_installation, find_difference
from vidjax.settings import flatten


@pytest.mark.parametrize(
    "theirs, says",
    [
        ({"a": 1, "b": [1, 2]}, ""),
        ({"a": 1, "b": [1, 3]}, "b is [1, 2] in process 0 and [1, 3] in process 3"),
        ({"a": 1}, "b is [1, 2] in process 0 and absent in process 3"),
        ({"a": 1, "b": [1, 2], "c": None}, "c is absent in process 0 and None in process 3"),
        ({"a": "1", "b": [1, 2]}, "a is 1 in process 0 and '1' in process 3"),
    ],
)
def test_the_first_difference_is_named(theirs, says):
    assert find_difference({"a": 1, "b": [1, 2]}, theirs, 3) == says


def test_settings_are_compared_one_by_one():
    config = {"data": {"size": (8, 8), "more": {}}, "seed": 3}
    assert flatten(config, "config.") == {"config.data.size": (8, 8), "config.data.more": {}, "config.seed": 3}
    here = describe_installation()
    assert here == describe_installation() and len(here["the code of vidjax"]) == 16


def test_processes_that_differ_end_with_one_line(env, tmp_path):
    """Before anything is written."""
    processes = start(2, "main", *FLAGS, f"--workdir={tmp_path / 'w'}", env=env)
    processes[1].kill()
    processes[1].communicate()
    again = Process("main", [*processes[1].arguments, "--config.seed=4"], env)
    for status, _, errors in end([processes[0], again]):
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert status == 1 and len(lines) == 1 and "Traceback" not in errors, errors
        assert "config.seed is 3 in process 0 and 4 in process 1" in lines[0]
    assert not (tmp_path / "w").exists()
