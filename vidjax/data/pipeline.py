"""Batches as pure functions of (seed, step): order, windows and crops are seeded by index, without any state."""

import dataclasses
import difflib
import functools
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from vidjax.data import transforms
from vidjax.data.readers import SOURCES, make_source
from vidjax.data.source import Item, OpenClip, Source, next_readable
from vidjax.data.video_reading import ArrayVideo, BrokenClip
from vidjax.errors import InputError, check_range

logger = logging.getLogger(__name__)
Batch = dict[str, np.ndarray]
MAX_CLIPS_CHECKED = 1000  # before a data set counts as unreadable


@dataclass(frozen=True)
class DataConfig:
    """What to read and how to cut windows of `frames` frames of `size` (height, width; one number: square) from it.

    source, path, split: see `readers`; {split} in the path is the split. A window takes every `stride`-th frame, or
    frames at `fps` per second. window: "random" | "start" | "center". heldout: the last n frames of every clip are not
    trained on. crop: "center" | "random", after scaling to the smallest size that covers `size`. flip: mirror half of
    the windows. images: stills of other clips beside each window. workers: threads that decode ahead (0: none).
    prefetch: batches they may be ahead. cache: keep decoded, scaled clips in memory. video: one clip, short for source
    "clip" with this path. caption: in place of the clips' own. latents: a folder of `vidjax.cache` that training
    reads in place of the videos.
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
    workers: int = 0
    prefetch: int = 2
    cache: bool = False
    video: str = ""
    caption: str = ""
    latents: str = ""

    def __post_init__(self):
        if self.video:
            object.__setattr__(self, "source", "clip")
            object.__setattr__(self, "path", self.video)
        _one_of("source", self.source, SOURCES)
        _one_of("window", self.window, ("random", "start", "center"))
        _one_of("crop", self.crop, ("center", "random"))
        if (not isinstance(self.size, int) and len(self.size) != 2) or min(self.hw) < 1:
            raise InputError(f"data.size={self.size!r}: give one positive number or (height, width)")
        check_range("data.", 1, frames=self.frames, stride=self.stride, prefetch=self.prefetch)
        check_range("data.", 0, heldout=self.heldout, images=self.images, workers=self.workers)
        if self.fps is not None and self.fps <= 0:
            raise InputError(f"data.fps={self.fps}: must be positive, or None for every stride-th frame")

    @property
    def hw(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])


def _one_of(name: str, value: str, known) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
        raise InputError(f"data.{name}={value!r} is unknown: {hint}")


class _Each(Sequence[str]):
    """One attribute of all items, looked up when it is asked for."""

    def __init__(self, source: Source, name: str):
        self._source, self._name = source, name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        places = range(len(self))[index]
        if isinstance(places, range):
            return [getattr(self._source[i], self._name) for i in places]
        return getattr(self._source[places], self._name)


class TooShort(BrokenClip):
    """A clip without a single window."""


class Dataset:
    """Cuts clips into training batches and evaluation windows. `make_dataset` makes one."""

    def __init__(
        self, source: Source, config: DataConfig, seed: int, tokenize: Callable[[str], np.ndarray] | None = None
    ):
        self._source, self._config, self._seed, self._tokenize = source, config, seed, tokenize
        self._cached: dict[int, ArrayVideo] = {}
        self._lock = threading.Lock()
        self.broken: dict[int, str] = {}  # number of a clip that cannot be used -> why
        self._warned: set[int] = set()
        self.num_classes = source.num_classes

    def __len__(self) -> int:
        return len(self._source)

    def item(self, index: int) -> Item:
        """Returns a clip's name, caption and class, unopened."""
        return self._source[index]

    @property
    def heldout(self) -> int:
        """Number of frames at the end of every clip that are not trained on."""
        return self._config.heldout

    def sample_of(self, most: int) -> list[int]:
        """Returns the numbers of at most `most` clips, evenly spread, so that measuring need not read a large data
        set."""
        return np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(int)).tolist()

    @property
    def clips(self) -> Sequence[str]:
        """Names of all clips, looked up when they are asked for."""
        return _Each(self._source, "name")

    @property
    def texts(self) -> Sequence[str]:
        """Captions of all clips, looked up when they are asked for."""
        return _Each(self._source, "text")

    def batches(
        self, batch_size: int, start_step: int = 0, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """Yields batches without end from `start_step` on; process p of n yields its contiguous n-th of every global
        batch.

        Keys: video uint8 [b, t, h, w, c]; images uint8 [b, k, h, w, c] and tokens int32 [b, n] if asked for; label and
        index int32 [b]; substituted bool [b], true where a broken clip gave way to the next readable one. Raises
        InputError, here and now, for a batch that the processes do not divide or that the data set cannot fill.
        """
        if batch_size < 1 or batch_size % process_count:
            raise InputError(
                f"train.batch_size={batch_size} does not divide over {process_count} processes: make it a multiple"
            )
        if len(self) < batch_size:
            raise InputError(
                f"{len(self)} clips are too few for one batch of {batch_size}: set train.batch_size={len(self)}, or "
                "add clips"
            )
        examples: Any = _shuffled(len(self), self._seed).random_map(self._example)
        own: Any = examples.batch(batch_size // process_count)
        own = own.slice(slice(start_step * process_count + process_index, None, process_count))
        if not self._config.workers:
            return (own[i] for i in itertools.count())
        ahead = max(self._config.prefetch, self._config.workers)
        return iter(
            own.to_iter_dataset(grain.ReadOptions(num_threads=self._config.workers, prefetch_buffer_size=ahead))
        )

    def windows(self, split: str, per_clip: int | None = None, clips: Sequence[int] | None = None) -> list[np.ndarray]:
        """Returns the evaluation windows of each clip, or of `clips`: uint8 [n, t, h, w, c], centre-cropped.

        split: "train" or "heldout" (the last `heldout` frames). Windows are evenly spaced, `per_clip` of them, by
        default as many as do not overlap. A clip without a window there gives n = 0.
        """
        _one_of("split", split, ("train", "heldout"))
        return [self._clip_windows(i, split, per_clip) for i in (range(len(self)) if clips is None else clips)]

    def held_out(self, most: int) -> Batch:
        """Returns a batch, like those of `batches`, of the first held-out window of each of at most `most` clips; empty
        if no clip has one."""
        chosen = self.sample_of(most) if self.heldout else []
        found = [(i, windows[0]) for i, windows in zip(chosen, self.windows("heldout", 1, chosen)) if len(windows)]
        if not found:
            return {}
        items = [self._source[i] for i, _ in found]
        batch = {"video": np.stack([video for _, video in found])}
        batch["label"] = np.array([item.label for item in items], np.int32)
        if self._tokenize is not None:
            batch["tokens"] = np.stack([np.asarray(self._tokenize(item.text), np.int32) for item in items])
        return batch

    def _clip_windows(self, index: int, split: str, per_clip: int | None) -> np.ndarray:
        config, item = self._config, self._source[index]
        try:
            with self._open(index, item) as video:
                first, starts, step = self._places(video, split)
                span = transforms.window_span(config.frames, step)
                at = transforms.spread_starts(starts, span, per_clip)
                numbers = np.concatenate([transforms.window_indices(first + s, config.frames, step) for s in at])
                frames = self._cut(video, numbers, (0.5, 0.5))
        except BrokenClip as reason:
            self._warn(index, item.name, f"{reason} ({split} windows)")
            return np.zeros((0, config.frames, *config.hw, 3), np.uint8)
        return frames.reshape(len(at), config.frames, *frames.shape[1:])

    def check(self) -> None:
        """Raises InputError unless one of the first clips can be read and is long enough."""
        if not len(self):
            raise InputError(
                f"data source {self._config.source!r} has no clips: {self._config.path or 'set data.path'}"
            )
        reason, remedy = None, "check data.path"
        for index in range(min(len(self), MAX_CLIPS_CHECKED)):
            try:
                self._window(index, self._source[index], np.full(4, 0.5))
                return
            except BrokenClip as error:
                if reason is None and isinstance(error, TooShort):
                    remedy = f"lower data.frames{'' if self._config.fps else ', data.stride'} or data.heldout"
                reason = reason or f"{self._source[index].name}: {error}"
        tried = min(len(self), MAX_CLIPS_CHECKED)
        which = f"{'first ' * (tried < len(self))}{tried}"
        raise InputError(f"none of the {which} clips can be used (the first one: {reason}): {remedy}")

    def survey(self, clips: Sequence[int]) -> tuple[dict[int, tuple[int, int, int, float]], dict[int, str]]:
        """Returns (frames, height, width, frames per second) by number of those `clips` that have a training window,
        and why the others are left out."""
        used, dropped = {}, {}
        for index in clips:
            item = self._source[index]
            try:
                self._window(index, item, np.full(4, 0.5))
                with item.open() as video:
                    used[index] = video.frames, video.height, video.width, float(video.fps)
            except BrokenClip as reason:
                dropped[index] = str(reason)
        return used, dropped

    def _example(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Reads one element of a batch; all its random numbers are drawn before anything is read."""
        u = rng.random(4)
        others = [(int(rng.integers(len(self))), rng.random(4)) for _ in range(self._config.images)]
        used, item, video = self._readable(index, self._window, u)
        substituted = used != index
        example: dict[str, Any] = {"video": video, "label": np.int32(item.label), "index": np.int32(used)}
        if others:
            stills = [self._readable(i, self._still, v) for i, v in others]
            example["images"] = np.stack([still for *_, still in stills])
            substituted |= any(got != i for (got, *_), (i, _) in zip(stills, others))
        if self._tokenize is not None:
            example["tokens"] = np.asarray(self._tokenize(item.text), np.int32)
        return example | {"substituted": np.bool_(substituted)}

    def _readable(self, index: int, read: Callable[..., np.ndarray], u: np.ndarray) -> tuple[int, Item, np.ndarray]:
        """Calls `read` on the clip, or on the next one that can be read: (its number, its item, the frames)."""
        reads = lambda i: (item := self._source[i], read(i, item, u))
        warn = lambda i, why: self._warn(i, self._source[i].name, why)
        used, (item, frames) = next_readable(index, len(self), reads, self.broken, warn)
        return used, item, frames

    def _warn(self, index: int, name: str, reason: str) -> None:
        with self._lock:
            if index not in self._warned:
                self._warned.add(index)
                logger.warning("clip %s is left out: %s", name, reason)

    def _range(self, frames: int, split: str) -> tuple[int, int]:
        border = max(frames - self._config.heldout, 0)
        return (0, border) if split == "train" else (border, frames)

    def _places(self, video: OpenClip, split: str) -> tuple[int, int, float]:
        """Returns the first frame of a split, the number of places where windows can begin, and source frames per
        frame. Raises TooShort if there is no such place."""
        config = self._config
        step = transforms.frame_step(video.fps, config.stride, config.fps)
        first, stop = self._range(video.frames, split)
        starts = transforms.window_starts(stop - first, config.frames, step)
        if not starts:
            use = {"train": "to train on", "heldout": "held out"}[split]
            left = f", {stop - first} of them {use} (data.heldout={config.heldout})" if config.heldout else ""
            pace = f"data.fps={config.fps} from {video.fps:g}" if config.fps else f"data.stride={config.stride}"
            span = transforms.window_span(config.frames, step)
            raise TooShort(
                f"too short: {video.frames} frames{left}; a window needs {span} (data.frames={config.frames}, {pace})"
            )
        return first, starts, step

    def _window(self, index: int, item: Item, u: np.ndarray) -> np.ndarray:
        """Cuts a training window [t, h, w, c]; u: uniform numbers (place in time, crop down, crop right, mirror)."""
        config = self._config
        with self._open(index, item) as video:
            first, starts, step = self._places(video, "train")
            place = {"random": u[0], "start": 0.0, "center": 0.5}[config.window]
            start = first + min(int(place * starts), starts - 1)
            return self._augment(video, transforms.window_indices(start, config.frames, step), u)

    def _still(self, index: int, item: Item, u: np.ndarray) -> np.ndarray:
        """Cuts one training frame [h, w, c]."""
        with self._open(index, item) as video:
            stop = self._range(video.frames, "train")[1]
            if not stop:
                raise TooShort(
                    f"too short: {video.frames} frames, 0 of them to train on (data.heldout={self._config.heldout})"
                )
            return self._augment(video, np.array([min(int(u[0] * stop), stop - 1)]), u)[0]

    def _augment(self, video: OpenClip, numbers: np.ndarray, u: np.ndarray) -> np.ndarray:
        frames = self._cut(video, numbers, (u[1], u[2]) if self._config.crop == "random" else (0.5, 0.5))
        return np.ascontiguousarray(frames[:, :, ::-1] if self._config.flip and u[3] < 0.5 else frames)

    def _cut(self, video: OpenClip, numbers: np.ndarray, place: tuple[float, float]) -> np.ndarray:
        cover = transforms.cover_size(video.height, video.width, self._config.hw)
        return transforms.crop_at(video.read(numbers, cover), self._config.hw, place)

    def _open(self, index: int, item: Item) -> OpenClip:
        if not self._config.cache:
            return item.open()
        if index not in self._cached:
            with item.open() as video:
                cover = transforms.cover_size(video.height, video.width, self._config.hw)
                self._cached[index] = ArrayVideo(video.read(range(video.frames), cover), video.fps)
        return self._cached[index]


def _shuffled(size: int, seed: int) -> grain.MapDataset:
    """Returns 0..size-1 in a new order every epoch, without end.

    Below 2^16, grain's constant-memory shuffle takes milliseconds per element (it walks a 16-bit cycle until it is in
    the range), so small sets get one permutation per epoch.
    """
    numbers = grain.MapDataset.range(size).seed(seed)
    epochs = 2**48 // size  # without end, that is: grain's own "for ever" overflows in batches of one
    if size > 2**16:
        return numbers.shuffle().repeat(epochs)

    @functools.lru_cache(maxsize=4)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(size)

    return numbers.repeat(epochs).map_with_index(lambda i, _: int(order(i // size)[i % size]))


def make_dataset(config: DataConfig, *, seed: int, tokenize: Callable[[str], np.ndarray] | None = None) -> Dataset:
    """Makes the data set of `config`; `tokenize` turns a caption into int32 ids of a fixed length.

    Raises InputError for a missing path or column, and if none of the clips can be read.
    """
    dataset = Dataset(open_source(config), config, seed, tokenize)
    dataset.check()
    return dataset


def open_source(config: DataConfig) -> Source:
    """Opens the clips of `config`, with its caption in place of theirs if it has one."""
    source = make_source(config.source, config.path, config.split)
    if not config.caption:
        return source
    return dataclasses.replace(source, item=lambda i: dataclasses.replace(source.item(i), text=config.caption))
