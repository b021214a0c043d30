"""How near gradients must come to those of other people's code."""

from collections.abc import Mapping

import numpy as np


def check_gradients(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Each within 1e-4 of its own norm or of the usual one: it may be nearly zero, as a sum of large numbers."""
    assert expected.keys() == found.keys()
    usual = np.median([np.linalg.norm(value) for value in expected.values()])
    for key, value in expected.items():
        off = np.linalg.norm(np.reshape(found[key], value.shape) - value)
        assert off <= 1e-4 * max(np.linalg.norm(value), usual), key
