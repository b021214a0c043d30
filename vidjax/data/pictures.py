"""Reads pictures with Pillow as clips: a single one, an animated one, or a folder of numbered ones."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vidjax.data.orientation import EXIF, Turn
from vidjax.data.video_reading import ArrayVideo, BrokenClip, check_decoded, check_size, resize
from vidjax.errors import InputError
from vidjax.runtime.inputs import open_regular

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm"}
# Whatever a name ends in: for other formats Pillow runs programs. What their files begin with:
FORMATS = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "WEBP": rb"RIFF....WEBP",
    "BMP": rb"BM",
    "PPM": rb"P[1-6]\s",
}
BEGINNING = re.compile(b"|".join(FORMATS.values()), re.DOTALL)
ORIENTATION = 0x0112  # EXIF's tag


def natural_key(name: str) -> list[tuple[int, str]]:
    """Returns a sorting key in which frame 10 comes after frame 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def sort_pictures(names: Iterable[str]) -> list[str]:
    """Sorts the pictures among file names as frames follow each other."""
    return sorted((n for n in names if Path(n).suffix.lower() in SUFFIXES), key=natural_key)


def is_picture(file: str | Path | bytes) -> bool:
    """Returns whether a file, or its content, begins like a picture; False if there is no such file."""
    if isinstance(file, bytes):
        return bool(BEGINNING.match(file))
    with suppress(InputError, OSError), open_regular(file) as opened:
        return bool(BEGINNING.match(opened.read(16)))
    return False


def read_picture(file: str | Path | bytes, mode: str = "RGB") -> UInt8[np.ndarray, "h w *c"]:
    """Reads a picture in Pillow's `mode`, turned as EXIF says, 16 bits per channel scaled to 8; an animation's first
    frame. Raises BrokenClip if it is in none of `FORMATS`, damaged or too large."""
    with _opened(file) as image:
        return _pixels(image, mode)


@contextmanager
def _opened(file: str | Path | bytes) -> Iterator[Any]:
    """Yields Pillow's image. Raises BrokenClip, also in place of what the block raises."""
    from PIL import Image

    name = "it" if isinstance(file, bytes) else Path(file).name
    try:
        opened = io.BytesIO(file) if isinstance(file, bytes) else open_regular(file)
    except InputError:
        raise BrokenClip(f"{name} is not a file") from None
    try:
        with opened, Image.open(opened, formats=tuple(FORMATS)) as image:
            check_size(image.height, image.width)
            yield image
    except BrokenClip:
        raise
    except Exception as error:  # decoders raise many kinds
        raise BrokenClip(f"{name} is not a readable picture") from error


def _pixels(image: Any, mode: str) -> UInt8[np.ndarray, "h w *c"]:
    from PIL import Image

    turn = Turn()
    with suppress(Exception):  # EXIF that cannot be parsed says nothing
        turn = EXIF.get(image.getexif().get(ORIENTATION), turn)
    if image.mode.startswith("I"):  # grey, 0 to 65535, which `convert` would cut at 255
        grey = (np.asarray(image).astype(np.uint32).clip(0, 65535) * 255 + 32767) // 65535
        image = Image.fromarray(grey.astype(np.uint8))
    return np.ascontiguousarray(turn(np.asarray(image.convert(mode))))


class Picture(ArrayVideo):
    """A picture as a clip of one frame, or an animated PNG or WebP as one of all its frames.

    Raises BrokenClip as `read_picture` does, and for an animation that is more than memory should hold.
    """

    def __init__(self, file: str | Path | bytes):
        self._file = file
        with _opened(file) as image:
            count = getattr(image, "n_frames", 1) if image.format in ("PNG", "WEBP") else 1
            first = int(count > 1 and getattr(image, "default_image", False))  # shown by what cannot animate
            check_decoded(count, image.height, image.width)
            frames, seconds = [], 0.0
            for i in range(first, count):
                image.seek(i)
                frames.append(_pixels(image, "RGB"))
                seconds += image.info.get("duration", 0) / 1000
        super().__init__(np.stack(frames), len(frames) / seconds if seconds else 1.0)

    @property
    def encoded(self) -> bytes:
        """The file itself."""
        return self._file if isinstance(self._file, bytes) else Path(self._file).read_bytes()


class Pictures:
    """The pictures of a folder in natural order of their names, read like a Video at a rate of `fps`.

    Raises BrokenClip for a folder without pictures, a picture that cannot be read, or one of another size.
    """

    channels = 3

    def __init__(self, folder: str | Path, fps: int | float = 25.0):
        try:
            self._files = [Path(folder) / name for name in sort_pictures(p.name for p in Path(folder).iterdir())]
        except OSError as error:
            raise BrokenClip(f"not a readable folder ({error.strerror})") from error
        if not self._files:
            raise BrokenClip("no pictures in it")
        self.frames, self.fps = len(self._files), fps
        self.height, self.width = read_picture(self._files[0]).shape[:2]

    def read(
        self, indices: Sequence[int] | np.ndarray, size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "t h w 3"]:
        """Returns the frames at `indices`, scaled to `size` (height, width) if given."""
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
