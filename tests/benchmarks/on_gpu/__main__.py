"""Checks, times and trains vidjax on one GPU (made for an H100 or H200); see `program.py`.

python tests/benchmarks/on_gpu --json FILE
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "on_accelerator"))

import program

program.main("gpu")
