"""Reads pictures and clips of strangers as frames of a video's size; nothing of the file itself is kept."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import numpy as np
from jaxtyping import Bool, UInt8

from vidjax.data.pictures import is_picture
from vidjax.data.video_reading import BrokenClip
from vidjax.runtime.storage import whole_file
from vidjax.serving.files import INPUT
from vidjax.serving.reading import decode
from vidjax.serving.refused import Refused

MAX_PICTURES = 20  # that a model is tuned on
# Threads of their own: others would wait for uploads. Each starts a process, which may take hundreds of megabytes.
READERS = anyio.CapacityLimiter(2)

Result = TypeVar("Result")


async def read_aside(function: Callable[[], Result]) -> Result:
    """Runs what reads an upload in one of the threads for that."""
    return await anyio.to_thread.run_sync(function, limiter=READERS)


def kind_of(content: bytes) -> str:
    """Tells a "picture" from a "clip" by its first bytes."""
    return "picture" if is_picture(content) else "clip"


def read_upload(content: bytes, frames: int, size: tuple[int, int]) -> UInt8[np.ndarray, "t h w 3"]:
    """Reads a picture as one frame, or the first `frames` of a clip, cut in the middle to the shape of `size`.

    Raises Refused for what is neither, is damaged, has fewer frames or another shape by far.
    """
    try:
        return decode(content, "RGB", frames, size)
    except BrokenClip as error:
        raise Refused(400, "invalid_input_reference", f"input_reference can't be read: {error}") from None


def read_mask(content: bytes, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Reads where a picture of a mask is white, cut as `read_upload` cuts a clip of the same shape. Raises Refused."""
    try:
        return decode(content, "L", 1, size)[0, :, :, 0] >= 128
    except BrokenClip as error:
        raise Refused(400, "invalid_mask", f"mask can't be read: {error}") from None


def keep_input(folder: Path, array: np.ndarray, name: str = INPUT) -> None:
    """Writes what a video starts from, or its mask, into its folder."""
    with whole_file(folder / name) as part, part.open("wb") as opened:
        np.save(opened, array)


def read_input(folder: Path, name: str = INPUT) -> np.ndarray:
    """Reads what a video starts from, uint8 [t, h, w, 3], or its mask, bool [t, h, w]."""
    return np.load(folder / name, allow_pickle=False)


@contextlib.contextmanager
def deleted_if_refused(folder: Path) -> Iterator[None]:
    """Removes a video's folder if the block raises."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
