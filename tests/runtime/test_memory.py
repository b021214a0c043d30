"""Freed memory stays with the process: what is taken again comes without a page fault."""

import subprocess
import sys
from pathlib import Path

import pytest

# Takes, fills and frees 64 MB, twice; prints how often the second time met a page that was not there.
TWICE = """
import ctypes, resource, sys
import {first}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(64 << 20)))
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(program: str, env) -> int:
    done = subprocess.run([sys.executable, *program], env=env, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_program_takes_its_memory_once_and_an_importing_script_is_left_alone(env, tmp_path):
    (tmp_path / "program.py").write_text(TWICE.format(first="vidjax"))
    env = {**env, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    pages = (64 << 20) // 4096
    assert faults(["-c", TWICE.format(first="vidjax")], env) > pages / 2**9 / 2  # of 2 MB where those are in use
    called = "import runpy, sys; sys.argv = ['-m']; runpy.run_module('program')"
    assert faults(["-c", called], env) < 10
