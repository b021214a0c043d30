"""The environment of the Python programs that the server starts."""

import os
import sys


def own_environment(**more: str) -> dict[str, str]:
    """Returns this process's environment, in which Python imports from where this process does: never from the current
    folder, where somebody else may have put a module."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"} | more
