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

from vidjax.data.pictures import is_picture, read_picture
from vidjax.data.transforms import cover_size, crop_at
from vidjax.data.video_reading import BrokenClip, Video, resize
from vidjax.runtime.storage import whole_file
from vidjax.serving.files import INPUT
from vidjax.serving.refused import Refused

MAX_CUT = 8  # times the pixels that are used
MAX_PICTURES = 20  # that a model is tuned on
# Threads of their own: others would wait for uploads. A picture of the largest size takes hundreds of megabytes.
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
        scaled = read_picture_at(content, size) if is_picture(content) else read_clip(content, frames, size)
    except BrokenClip as error:
        raise Refused(400, "invalid_input_reference", f"input_reference can't be read: {error}") from None
    return np.ascontiguousarray(crop_at(scaled, size, (0.5, 0.5)))


def read_mask(content: bytes, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Reads where a picture of a mask is white, cut as `read_upload` cuts a clip of the same shape. Raises Refused."""
    try:
        if not is_picture(content):
            raise BrokenClip("it is no picture")
        scaled = read_picture_at(content, size, "L")
    except BrokenClip as error:
        raise Refused(400, "invalid_mask", f"mask can't be read: {error}") from None
    return crop_at(scaled, size, (0.5, 0.5))[0, :, :, 0] >= 128


def read_picture_at(content: bytes, size: tuple[int, int], mode: str = "RGB") -> UInt8[np.ndarray, "1 h w c"]:
    """Reads a picture in Pillow's `mode` so large that it covers `size`. Raises BrokenClip."""
    picture = read_picture(content, mode)
    picture = picture.reshape(*picture.shape[:2], -1)
    return resize(picture[None], covering(*picture.shape[:2], size))


def read_clip(content: bytes, frames: int, size: tuple[int, int]) -> UInt8[np.ndarray, "t h w 3"]:
    """Reads the first frames of a clip so large that they cover `size`. Raises BrokenClip."""
    with Video(content) as video:
        if video.frames < frames:
            raise BrokenClip(f"it has {video.frames} frames, the video has {frames}: ask for fewer")
        return video.read(range(frames), covering(video.height, video.width, size))


def covering(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Returns `cover_size`. Raises BrokenClip where most of that would be cut off: a line of pixels would fill the
    memory."""
    covers = cover_size(height, width, size)
    if covers[0] * covers[1] > MAX_CUT * size[0] * size[1]:
        raise BrokenClip(f"{width}x{height} pixels have another shape than the video's {size[1]}x{size[0]}: cut it")
    return covers


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
