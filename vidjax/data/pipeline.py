"""Batches as pure functions of (seed, step): order, windows and crops are seeded by index, without any state."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from vidjax.data import crops, order, transforms
from vidjax.data.buckets import Shape
from vidjax.data.captions import with_captions
from vidjax.data.config import DataConfig, check_choice
from vidjax.data.grouping import Group, group_clips
from vidjax.data.readers import make_source
from vidjax.data.source import Item, OpenClip, Source, first_readable, join
from vidjax.data.video_reading import ArrayVideo, BrokenClip
from vidjax.errors import InputError

logger = logging.getLogger(__name__)
Batch = dict[str, np.ndarray]
MAX_CLIPS_CHECKED = 1000  # before a data set counts as unreadable


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
        self._cached: dict[tuple[int, tuple[int, int]], ArrayVideo] = {}
        self._lock = threading.Lock()
        self._groups = group_clips(source, config)
        self._shape = (config.frames, *config.hw)  # of evaluation windows
        self.broken = dict(self._groups.left_out)  # number of a clip that cannot be used -> why
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

    @property
    def shares(self) -> list[float]:
        """How often each bucket is drawn from; one, if all windows are of one shape."""
        return [group.share for group in self._groups.groups]

    @property
    def groups(self) -> tuple[Group, ...]:
        """The clips by the shape of their windows and by folder."""
        return self._groups.groups

    @property
    def buckets(self) -> list[tuple[Shape, int]]:
        """The shapes of the buckets and the numbers of their clips; none, if all windows are of one shape."""
        return [(group.shape, sum(map(len, group.members))) for group in self._groups.groups if self.table]

    @property
    def table(self) -> str:
        """Lists the buckets, for people; "" if all windows are of one shape."""
        return self._groups.table

    def batches(
        self,
        batch_size: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        bucket: int | None = None,
    ) -> Iterator[Batch]:
        """Yields batches without end from `start_step` on, each of one bucket, or all of `bucket`; process p of n
        yields its contiguous n-th of every global batch.

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
        streams, shares = self._streams(), self.shares
        if bucket is not None:
            streams, shares = streams[bucket : bucket + 1], [1.0]
        own = order.batch_streams(streams, shares, batch_size, start_step, process_index, process_count)
        return order.read(own, self._config.workers, max(self._config.prefetch, self._config.workers))

    def _streams(self) -> list[Any]:
        """The examples of each bucket without end; a clip of a small one may come several times in a batch."""
        groups = self._groups.groups
        streams = order.stream_groups([(group.members, group.weights) for group in groups], self._seed)
        return [stream.random_map(partial(self._example, group)) for stream, group in zip(streams, groups)]

    def windows(
        self,
        split: str,
        per_clip: int | None = None,
        clips: Sequence[int] | None = None,
        as_trained: bool = False,
    ) -> list[np.ndarray]:
        """Returns the evaluation windows of each clip, or of `clips`: uint8 [n, t, h, w, c], centre-cropped.

        split: "train" or "heldout" (the last `heldout` frames). Windows are evenly spaced, `per_clip` of them, by
        default as many as do not overlap. A clip without a window there gives n = 0. All are of data.frames and
        data.size, or `as_trained` in the shape of the clip's bucket.
        """
        check_choice("split", split, ("train", "heldout"))
        numbers = range(len(self)) if clips is None else clips
        shape = self._shape_of if as_trained else lambda index: self._shape
        return [self._clip_windows(i, split, per_clip, shape(i)) for i in numbers]

    def _shape_of(self, index: int) -> Shape:
        """The shape of the clip's bucket; of those that are in none that of evaluation windows."""
        return next((group.shape for group in self._groups.groups if group.has(index)), self._shape)

    def held_out(self, most: int) -> list[Batch]:
        """Returns batches, like those of `batches`, of the first held-out window of each of at most `most` clips, one
        for each bucket; none if no clip has one."""
        chosen = self.sample_of(most) if self.heldout else []
        cut = zip(chosen, self.windows("heldout", 1, chosen, as_trained=True))
        found: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
        for index, windows in cut:
            if len(windows):
                found.setdefault(windows.shape[1:], []).append((index, windows[0]))
        return [self._held_out(found[shape]) for shape in sorted(found)]

    def _held_out(self, found: Sequence[tuple[int, np.ndarray]]) -> Batch:
        items = [self._source[i] for i, _ in found]
        batch = {"video": np.stack([video for _, video in found])}
        batch["label"] = np.array([item.label for item in items], np.int32)
        if self._tokenize is not None:
            batch["tokens"] = np.stack([np.asarray(self._tokenize(item.text), np.int32) for item in items])
        return batch

    def _clip_windows(self, index: int, split: str, per_clip: int | None, shape: Shape) -> np.ndarray:
        count, item = shape[0], self._source[index]
        try:
            with self._open(index, item, shape) as video:
                first, starts, step = self._places(video, split, count)
                span = transforms.window_span(count, step)
                at = transforms.spread_starts(starts, span, per_clip)
                numbers = np.concatenate([transforms.window_indices(first + s, count, step) for s in at])
                frames = self._cut(video, numbers, (0.5, 0.5), shape)
        except BrokenClip as reason:
            self._warn(index, item.name, f"{reason} ({split} windows)")
            return np.zeros((0, *shape, 3), np.uint8)
        return frames.reshape(len(at), count, *frames.shape[1:])

    def check(self) -> None:
        """Raises InputError unless one of the first clips can be read and is long enough."""
        if not len(self):
            raise InputError(
                f"data source {self._config.source!r} has no clips: {self._config.path or 'set data.path'}"
            )
        if self._config.buckets:
            return  # all clips were looked at
        reason, remedy = None, "check data.path"
        for index in range(min(len(self), MAX_CLIPS_CHECKED)):
            try:
                self._window(self._shape, index, self._source[index], np.full(4, 0.5))
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
                self._window(self._shape_of(index), index, item, np.full(4, 0.5))
                with item.open() as video:
                    used[index] = video.frames, video.height, video.width, float(video.fps)
            except BrokenClip as reason:
                dropped[index] = str(reason)
        return used, dropped

    def _example(self, group: Group, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Reads one element of a batch; all its random numbers are drawn before anything is read."""
        u = rng.random(4)
        others = [(group.draw(rng), rng.random(4)) for _ in range(self._config.images)]
        said = rng.random()
        used, item, video = self._readable(group, index, self._window, u)
        substituted = used != index
        example: dict[str, Any] = {"video": video, "label": np.int32(item.label), "index": np.int32(used)}
        if others:
            stills = [self._readable(group, i, self._still, v) for i, v in others]
            example["images"] = np.stack([still for *_, still in stills])
            substituted |= any(got != i for (got, *_), (i, _) in zip(stills, others))
        if self._tokenize is not None:
            caption = item.captions[int(said * len(item.captions))]
            example["tokens"] = np.asarray(self._tokenize(caption), np.int32)
        return example | {"substituted": np.bool_(substituted)}

    def _readable(
        self, group: Group, index: int, read: Callable[..., np.ndarray], u: np.ndarray
    ) -> tuple[int, Item, np.ndarray]:
        """Calls `read` on the clip, or on the next one that can be read: (its number, its item, the frames)."""
        reads = lambda i: (item := self._source[i], read(group.shape, i, item, u))
        warn = lambda i, why: self._warn(i, self._source[i].name, why)
        used, (item, frames) = first_readable(self._groups.stand_ins(group, index), reads, self.broken, warn)
        return used, item, frames

    def _warn(self, index: int, name: str, reason: str) -> None:
        with self._lock:
            if index not in self._warned:
                self._warned.add(index)
                logger.warning("clip %s is left out: %s", name, reason)

    def _range(self, frames: int, split: str) -> tuple[int, int]:
        border = max(frames - self._config.heldout, 0)
        return (0, border) if split == "train" else (border, frames)

    def _places(self, video: OpenClip, split: str, frames: int) -> tuple[int, int, float]:
        """Returns the first frame of a split, the number of places where windows can begin, and source frames per
        frame. Raises TooShort if there is no such place."""
        config = self._config
        step = transforms.frame_step(video.fps, config.stride, config.fps)
        first, stop = self._range(video.frames, split)
        starts = transforms.window_starts(stop - first, frames, step)
        if not starts:
            use = {"train": "to train on", "heldout": "held out"}[split]
            left = f", {stop - first} of them {use} (data.heldout={config.heldout})" if config.heldout else ""
            pace = f"data.fps={config.fps} from {video.fps:g}" if config.fps else f"data.stride={config.stride}"
            span = transforms.window_span(frames, step)
            raise TooShort(
                f"too short: {video.frames} frames{left}; a window needs {span} (data.frames={frames}, {pace})"
            )
        return first, starts, step

    def _window(self, shape: Shape, index: int, item: Item, u: np.ndarray) -> np.ndarray:
        """Cuts a training window [t, h, w, c]; u: uniform numbers (place in time, crop down, crop right, mirror)."""
        with self._open(index, item, shape) as video:
            first, starts, step = self._places(video, "train", shape[0])
            place = {"random": u[0], "start": 0.0, "center": 0.5}[self._config.window]
            start = first + min(int(place * starts), starts - 1)
            return self._augment(video, transforms.window_indices(start, shape[0], step), u, shape)

    def _still(self, shape: Shape, index: int, item: Item, u: np.ndarray) -> np.ndarray:
        """Cuts one training frame [h, w, c]."""
        with self._open(index, item, shape) as video:
            stop = self._range(video.frames, "train")[1]
            if not stop:
                raise TooShort(
                    f"too short: {video.frames} frames, 0 of them to train on (data.heldout={self._config.heldout})"
                )
            return self._augment(video, np.array([min(int(u[0] * stop), stop - 1)]), u, shape)[0]

    def _augment(self, video: OpenClip, numbers: np.ndarray, u: np.ndarray, shape: Shape) -> np.ndarray:
        frames = self._cut(video, numbers, (u[1], u[2]) if self._config.crop == "random" else (0.5, 0.5), shape)
        return np.ascontiguousarray(frames[:, :, ::-1] if self._config.flip and u[3] < 0.5 else frames)

    def _cut(self, video: OpenClip, numbers: np.ndarray, place: tuple[float, float], shape: Shape) -> np.ndarray:
        cover = crops.cover_size(video.height, video.width, shape[1:])
        return crops.crop_at(video.read(numbers, cover), shape[1:], place)

    def _open(self, index: int, item: Item, shape: Shape) -> OpenClip:
        if not self._config.cache:
            return item.open()
        key = (index, shape[1:])
        if key not in self._cached:
            with item.open() as video:
                cover = crops.cover_size(video.height, video.width, shape[1:])
                self._cached[key] = ArrayVideo(video.read(range(video.frames), cover), video.fps)
        return self._cached[key]


def make_dataset(config: DataConfig, *, seed: int, tokenize: Callable[[str], np.ndarray] | None = None) -> Dataset:
    """Makes the data set of `config`; `tokenize` turns a caption into int32 ids of a fixed length.

    Raises InputError for a missing path or column, and if none of the clips can be read.
    """
    dataset = Dataset(open_source(config), config, seed, tokenize)
    dataset.check()
    return dataset


def open_source(config: DataConfig) -> Source:
    """Opens the clips of `config`, with the captions that it asks for."""
    sources = [make_source(source, path, config.split) for source, path in config.folders]
    return with_captions(sources[0] if len(sources) == 1 else join(sources), config)
