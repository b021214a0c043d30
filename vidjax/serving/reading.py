"""Decodes an upload in a process of its own: a file that makes a decoder crash, hang or fill the memory takes nothing
else with it. Imports no JAX, so that the process starts in a fraction of a second."""

import io
import math
import resource
import subprocess
import sys

import numpy as np
from jaxtyping import UInt8

from vidjax.data.crops import cover_size, crop_at
from vidjax.data.pictures import is_picture, read_picture
from vidjax.data.video_reading import BrokenClip, Video, resize
from vidjax.serving.children import own_environment

MAX_CUT = 8  # times the pixels that are used
CPU_SECONDS, WALL_SECONDS = 60, 300  # of one process
MEMORY = 2**32  # bytes of addresses that it may have, but for its result
CODE = "from vidjax.serving.reading import main; main()"


def decode(
    content: bytes, mode: str = "RGB", frames: int = 1, size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "t h w c"]:
    """Decodes the first `frames` of a clip, or a picture in Pillow's `mode` as one frame; scaled, and cut in the
    middle, to `size` (height, width) if given. Raises BrokenClip, also if the process dies or takes too much."""
    memory = MEMORY + 2 * 3 * MAX_CUT * frames * math.prod(size or ())
    command = [sys.executable, "-c", CODE, mode, *map(str, (memory, frames, *(size or ())))]
    env = own_environment(OPENBLAS_NUM_THREADS="1")  # each thread would reserve memory
    try:
        done = subprocess.run(command, input=content, stdout=subprocess.PIPE, timeout=WALL_SECONDS, env=env)
    except subprocess.TimeoutExpired:
        raise BrokenClip("it takes too long") from None
    if done.returncode:
        raise BrokenClip("it takes too much time or memory, or breaks its decoder")
    if not done.stdout.startswith(np.lib.format.MAGIC_PREFIX):
        raise BrokenClip(done.stdout.decode(errors="replace"))
    return np.load(io.BytesIO(done.stdout), allow_pickle=False)


def main() -> None:
    """Runs in that process: reads the file from stdin, and writes an array, or why there is none, to stdout."""
    mode, (memory, frames, *size) = sys.argv[1], map(int, sys.argv[2:])
    for what, most in (("AS", memory), ("CPU", CPU_SECONDS), ("CORE", 0)):
        lower(getattr(resource, f"RLIMIT_{what}"), most)
    content, out = sys.stdin.buffer.read(), sys.stdout.buffer
    try:
        found = read_picture_at(content, mode, size) if is_picture(content) else read_clip(content, mode, frames, size)
    except BrokenClip as error:
        out.write(str(error).encode())
    else:
        np.save(out, crop_at(found, (size[0], size[1]), (0.5, 0.5)) if size else found)


def lower(limit: int, most: int) -> None:
    """Lowers a limit of this process for good, unless it is lower already."""
    hard = resource.getrlimit(limit)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(limit, (most, most))


def read_picture_at(content: bytes, mode: str, size: list[int]) -> UInt8[np.ndarray, "1 h w c"]:
    """Reads a picture so large that it covers `size`, if there is one. Raises BrokenClip."""
    picture = read_picture(content, mode)
    picture = picture.reshape(1, *picture.shape[:2], -1)
    return resize(picture, covering(*picture.shape[1:3], size)) if size else picture


def read_clip(content: bytes, mode: str, frames: int, size: list[int]) -> UInt8[np.ndarray, "t h w 3"]:
    """Reads the first frames of a clip so large that they cover `size`. Raises BrokenClip."""
    if mode != "RGB":
        raise BrokenClip("it is no picture")
    with Video(content) as video:
        if video.frames < frames:
            raise BrokenClip(f"it has {video.frames} frames, the video has {frames}: ask for fewer")
        return video.read(range(frames), covering(video.height, video.width, size) if size else None)


def covering(height: int, width: int, size: list[int]) -> tuple[int, int]:
    """Returns `cover_size`. Raises BrokenClip where most of that would be cut off: a line of pixels would fill the
    memory."""
    covers = cover_size(height, width, (size[0], size[1]))
    if covers[0] * covers[1] > MAX_CUT * size[0] * size[1]:
        raise BrokenClip(f"{width}x{height} pixels have another shape than the video's {size[1]}x{size[0]}: cut it")
    return covers
