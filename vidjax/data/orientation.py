"""Turns pictures as their files ask for: how the camera was held."""

import struct
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8


class Turn(NamedTuple):
    """Maps stored to shown pixels: `transposed` swaps rows and columns, then `up` reverses the rows and `left` the
    columns."""

    transposed: bool = False
    up: bool = False
    left: bool = False

    def __call__(self, frame: UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "h2 w2 *c"]:
        """Returns the frame as it is shown."""
        frame = frame.swapaxes(0, 1) if self.transposed else frame
        return frame[:: -1 if self.up else 1, :: -1 if self.left else 1]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the size of the shown frame for that of the stored one, or the other way round."""
        return (width, height) if self.transposed else (height, width)


# The values of EXIF's tag Orientation; others are as good as none.
EXIF = {
    2: Turn(False, False, True),
    3: Turn(False, True, True),
    4: Turn(False, True, False),
    5: Turn(True, False, False),
    6: Turn(True, False, True),
    7: Turn(True, True, True),
    8: Turn(True, True, False),
}


def parse_matrix(matrix: bytes) -> Turn:
    """Returns the quarter turn, mirrored or not, nearest to a display matrix (ISO 14496-12: nine int32 in this
    machine's byte order; the point (x, y) is shown at (a x + c y, b x + d y))."""
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix)
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Turn(True, b < 0, c < 0)
    return Turn(False, d < 0, a < 0)
