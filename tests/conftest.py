"""Every test runs with shape and type checks on, without network, and on the CPU unless it asks for more."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

install_import_hook("vidjax", "beartype.beartype")
