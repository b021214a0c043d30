"""Freed memory stays with the process: what is taken again comes without a page fault."""

import subprocess
import sys

import pytest

# Takes, fills and frees 64 MB, twice, in a thread as JAX's workers do; prints how often the second time met a page that
# was not there. What programs import is imported before.
TWICE = """
import ctypes, resource, sys, threading
import jax, numpy
from absl import flags
from vidjax import cli

def take():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(64 << 20)))
        ctypes.memset(block, 1, 64 << 20)
        libc.free(block)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

def main():
    worker = threading.Thread(target=take)
    worker.start()
    worker.join()
"""


def faults(code: str, env) -> int:
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_program_takes_its_memory_once_and_an_importing_script_is_left_alone(env):
    pages = (64 << 20) // 4096
    assert faults(TWICE + "main()", env) > pages / 2**9 / 2  # of 2 MB where those are in use
    assert faults(TWICE + "cli.start(main)", env) < 10
