"""What of a data set a stage reads, and how it cuts windows from it: the config's section `data`."""

import dataclasses
import difflib
from collections.abc import Collection
from dataclasses import dataclass

from vidjax.data.buckets import Limits
from vidjax.data.readers import SOURCES
from vidjax.errors import InputError, check_range

MAX_BUCKETS = 64


@dataclass(frozen=True)
class DataConfig:
    """What to read and how to cut windows of `frames` frames of `size` (height, width; one number: square) from it.

    source, path, split: see `readers`; {split} in the path is the split. Several, with ; between them, are read
    together: in their `weights`, the shares of the examples, or all clips alike. A window takes every `stride`-th
    frame, or frames at `fps` per second. window: "random" | "start" | "center". heldout: the last n frames of every
    clip are not trained on. crop: "center" | "random", after scaling to the smallest size that covers `size`. flip:
    mirror half of the windows. images: stills of other clips beside each window. workers: threads that decode ahead (0:
    none). prefetch: batches they may be ahead. cache: keep decoded, scaled clips in memory. video: one clip, short for
    source "clip" with this path. latents: a folder of `vidjax.cache` that training reads in place of the videos.

    buckets: at most so many shapes are chosen to suit the clips, none of more than `frames` frames or of more pixels
    than `size` has, in multiples of `multiple` (frames, pixels; by default what the model needs), and every training
    batch is of one of them (0: all are of `frames` and `size`). Evaluation windows keep `frames` and `size`.

    caption: in place of the clips' own. caption_lines: each line of a caption is one, of which every epoch draws
    another. prefix, suffix: trigger words around every caption, with a space between.
    """

    source: str = "webvid"
    path: str = ""
    split: str = "train"
    frames: int = 8
    size: int | tuple[int, int] = 64
    stride: int = 1
    fps: int | float | None = None
    window: str = "random"
    heldout: int = 0
    crop: str = "center"
    flip: bool = False
    images: int = 0
    buckets: int = 0
    multiple: tuple[int, int] | None = None
    weights: tuple[float, ...] | None = None
    workers: int = 0
    prefetch: int = 2
    cache: bool = False
    video: str = ""
    caption: str = ""
    caption_lines: bool = False
    prefix: str = ""
    suffix: str = ""
    latents: str = ""

    def __post_init__(self):
        if self.video:
            object.__setattr__(self, "source", "clip")
            object.__setattr__(self, "path", self.video)
        for source in self.source.split(";"):
            check_choice("source", source, SOURCES)
        check_choice("window", self.window, ("random", "start", "center"))
        check_choice("crop", self.crop, ("center", "random"))
        if (not isinstance(self.size, int) and len(self.size) != 2) or min(self.hw) < 1:
            raise InputError(f"data.size={self.size!r}: give one positive number or (height, width)")
        check_range("data.", 1, frames=self.frames, stride=self.stride, prefetch=self.prefetch)
        check_range("data.", 0, heldout=self.heldout, images=self.images, workers=self.workers)
        check_range("data.", 0, MAX_BUCKETS, buckets=self.buckets)
        self._check_folders()
        if self.fps is not None and self.fps <= 0:
            raise InputError(f"data.fps={self.fps}: must be positive, or None for every stride-th frame")

    def _check_folders(self) -> None:
        sources, paths = self.source.split(";"), self.path.split(";")
        if len(sources) not in (1, len(paths)):
            raise InputError(f"data.source={self.source} names {len(sources)} readers for {len(paths)} in data.path")
        if self.weights is None:
            return
        if len(self.weights) != len(paths) or min(self.weights, default=0) <= 0:
            raise InputError(
                f"data.weights={self.weights}: give a positive number for each of the {len(paths)} in "
                f"data.path={self.path}, which ; divides"
            )

    @property
    def folders(self) -> list[tuple[str, str]]:
        """(source, path) of each data set that is read."""
        sources, paths = self.source.split(";"), self.path.split(";")
        return [(sources[k % len(sources)], path) for k, path in enumerate(paths)]

    @property
    def limits(self) -> Limits:
        """What shapes the buckets may have. Raises InputError if there are none."""
        height, width = self.hw
        return Limits(self.frames, height * width, self.multiple or (1, 1))

    def in_multiples(self, frames: int, pixels: int) -> "DataConfig":
        """Returns this with buckets in these multiples, unless there are none or it names its own."""
        if not self.buckets or self.multiple:
            return self
        return dataclasses.replace(self, multiple=(frames, pixels))

    @property
    def hw(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])


def check_choice(name: str, value: str, known: Collection[str]) -> None:
    """Raises InputError, with the most similar one, if config.data has another value than the known ones."""
    if value not in known:
        near = difflib.get_close_matches(value, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
        raise InputError(f"data.{name}={value!r} is unknown: {hint}")
