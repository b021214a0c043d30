"""Reads pictures and clips of strangers as frames of a video's size; nothing of the file itself is kept."""

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vidjax.data.pictures import is_picture, read_picture
from vidjax.data.transforms import cover_size, crop_at
from vidjax.data.video_reading import BrokenClip, Video, resize
from vidjax.runtime.storage import whole_file
from vidjax.serving.files import INPUT
from vidjax.serving.refused import Refused

MAX_CUT = 8  # times the pixels that are used
AT_ONCE = threading.Semaphore(2)  # a picture of the largest size that is read takes hundreds of megabytes


def kind_of(content: bytes) -> str:
    """Tells a "picture" from a "clip" by its first bytes."""
    return "picture" if is_picture(content) else "clip"


def read_upload(content: bytes, frames: int, size: tuple[int, int]) -> UInt8[np.ndarray, "t h w 3"]:
    """Reads a picture as one frame, or the first `frames` of a clip, cut in the middle to the shape of `size`.

    Raises Refused for what is neither, is damaged, has fewer frames or another shape by far.
    """
    try:
        with AT_ONCE:
            scaled = read_picture_at(content, size) if is_picture(content) else read_clip(content, frames, size)
    except BrokenClip as error:
        raise Refused(400, "invalid_input_reference", f"input_reference can't be read: {error}") from None
    return np.ascontiguousarray(crop_at(scaled, size, (0.5, 0.5)))


def read_picture_at(content: bytes, size: tuple[int, int]) -> UInt8[np.ndarray, "1 h w 3"]:
    """Reads a picture so large that it covers `size`. Raises BrokenClip."""
    picture = read_picture(content)
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


def keep_input(folder: Path, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
    """Writes what a video starts from into its folder."""
    with whole_file(folder / INPUT) as part, part.open("wb") as opened:
        np.save(opened, frames)


def read_input(folder: Path) -> UInt8[np.ndarray, "t h w 3"]:
    """Reads what a video starts from."""
    return np.load(folder / INPUT, allow_pickle=False)


@contextlib.contextmanager
def deleted_if_refused(folder: Path) -> Iterator[None]:
    """Removes a video's folder if the block raises."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
