"""16 frames from the middle of each of several clips, by one thread.

Theirs is decord, the reader of Tune-A-Video's and LVDM's own code.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from turns import Options, against

from vidjax.data.readers import SHIPPED
from vidjax.data.shapes import draw
from vidjax.data.video_reading import read_frames, resize
from vidjax.data.video_writing import write_mp4

FRAMES = 16


def theirs(path: Path, first: int) -> np.ndarray:
    import decord  # only this item needs it

    reader = decord.VideoReader(str(path), num_threads=1)
    return reader.get_batch(range(first, first + FRAMES)).asnumpy()


def ours(path: Path, first: int) -> np.ndarray:
    return read_frames(path, range(first, first + FRAMES))


def small(options: Options) -> dict[str, Any]:
    """The shipped clips, 96x96."""
    return compare(sorted(SHIPPED.parent.rglob("*.mp4")), 16, options)


def large(options: Options) -> dict[str, Any]:
    """150 frames of 336x596, WebVid's size, noisy; from frame 75."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.mp4"
        noise = np.random.default_rng(0).integers(0, 40, (1, 336, 596, 1), np.uint8)
        write_mp4(path, resize(draw("circle", "red", "left", 150, 96), (336, 596)) // 2 + noise, 25)
        return compare([path], 75, options)


def compare(paths: list[Path], first: int, options: Options) -> dict[str, Any]:
    read = lambda reader: lambda: [reader(path, first) for path in paths]
    got, wanted = (np.concatenate(read(reader)()).astype(np.float32) for reader in (ours, theirs))
    relative = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
    return {"difference": relative, **against(options.repeats, ours=read(ours), torch=read(theirs))}


ITEMS: dict[str, Callable[[Options], dict[str, Any]]] = {"decode_small": small, "decode_large": large}
