"""Every test runs with shape and type checks on, without network, and on the CPU unless it asks for more."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests compile much and run little: on CPUs XLA's optimisation costs twice what it saves here.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 " + os.environ.get("XLA_FLAGS", "")

from jaxtyping import install_import_hook

install_import_hook("vidjax", "beartype.beartype")
