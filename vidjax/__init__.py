"""Video diffusion models in JAX: train, tune and sample. Importing the package imports nothing else."""

import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # one of its programs starts: nothing has threads yet
    from vidjax.runtime.memory import keep_freed_memory

    keep_freed_memory()
