"""A folder of numbered pictures, read as the frames of a clip."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vidjax.data.video_io import BrokenClip, check_decoded, check_size, resize

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")  # whatever a name ends in: others run programs to read a file


def natural(name: str) -> list[tuple[int, str]]:
    """A sorting key in which frame 10 comes after frame 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def in_order(names: Iterable[str]) -> list[str]:
    """The pictures among file names, as frames follow each other."""
    return sorted((n for n in names if Path(n).suffix.lower() in SUFFIXES), key=natural)


def read_picture(path: str | Path, mode: str = "RGB") -> UInt8[np.ndarray, "h w *c"]:
    """Its pixels as of `mode`. Raises BrokenClip if it is in none of these formats, damaged or too large."""
    from PIL import Image

    if not os.path.isfile(path):
        raise BrokenClip(f"{Path(path).name} is not a file")
    try:
        with Image.open(path, formats=FORMATS) as image:
            check_size(image.height, image.width)
            return np.asarray(image.convert(mode))
    except BrokenClip:
        raise
    except Exception as error:  # decoders raise many kinds
        raise BrokenClip(f"{Path(path).name} is not a readable picture") from error


class Pictures:
    """The pictures of a folder, in natural order of their names, read like a Video; pictures do not know their rate.

    Raises BrokenClip for a folder without pictures, a picture that cannot be read, or one of another size.
    """

    channels = 3

    def __init__(self, folder: str | Path, fps: int | float = 25.0):
        try:
            self._files = [Path(folder) / name for name in in_order(p.name for p in Path(folder).iterdir())]
        except OSError as error:
            raise BrokenClip(f"not a readable folder ({error.strerror})") from error
        if not self._files:
            raise BrokenClip("no pictures in it")
        self.frames, self.fps = len(self._files), fps
        self.height, self.width = read_picture(self._files[0]).shape[:2]

    def read(
        self, indices: Sequence[int] | np.ndarray, size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "t h w 3"]:
        """The frames at `indices`, scaled to `size` (height, width) if given."""
        found, size = {}, size or (self.height, self.width)
        check_decoded(len(indices), *size)
        for i in sorted({int(i) for i in indices}):
            frame = read_picture(self._files[i])
            if frame.shape[:2] != (self.height, self.width):
                raise BrokenClip(
                    f"its size changes from {self.width}x{self.height} to {frame.shape[1]}x{frame.shape[0]}"
                )
            found[i] = resize(frame[None], size)[0]
        return np.stack([found[int(i)] for i in indices])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass
