"""Compiles for TPUs and GPUs that are not there: pip install -e '.[test,accelerators]', then name this folder."""

import os

from vidjax.profiling import chips

os.environ.update(chips.QUIET)
