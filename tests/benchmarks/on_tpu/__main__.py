"""Checks, times and trains vidjax on one TPU host; see `program.py`.

python tests/benchmarks/on_tpu --json FILE
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "on_accelerator"))

import program

program.main("tpu")
