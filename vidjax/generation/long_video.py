"""Videos longer than a model's clips: each clip continues the one before, others fill in between; written as sampled.

He et al. 2022, section 3.3. A part of the video is a function of (seed, its number) and the latents that it begins
with, so that an interrupted video goes on as if it had not been, and memory is that of one part.
"""

import dataclasses
import fcntl
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vidjax.data.video_writing import Mp4Writer, contact_sheet, finish_growing
from vidjax.errors import InputError, reason
from vidjax.generation.cascade import AnyGenerator
from vidjax.generation.pictures import put_in_place

BLOCK = 64  # frames of an interrupted video that are read at a time
SHEET = 16  # frames that the contact sheet shows

Latents = Float[np.ndarray, "b _ h w c"]
Known = tuple[Latents, Bool[np.ndarray, " _"]]


@dataclasses.dataclass(frozen=True)
class Clips:
    """Samples clips of `length` latents: `sample(seed, known)`, where `known` is None or latents with a mask."""

    sample: Callable[[int, Known | None], Latents]
    length: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """How clips become a video: each begins with the last `overlap` latents of the one before.

    With `levels`, what `predict` makes are sparse keys: `fill` puts a clip between each two of them, at the next level
    between each two latents of those, and so on.
    """

    predict: Clips
    overlap: int
    fill: Clips | None = None
    levels: int = 0

    def __post_init__(self):
        if not 1 <= self.overlap < self.predict.length:
            raise InputError(
                f"a clip of {self.predict.length} latents cannot begin with {self.overlap} known ones; "
                f"set sample.known between 1 and {self.predict.length - 1}"
            )
        if self.levels and (self.fill is None or self.fill.length < 3):
            raise InputError("what lies between two keys comes from a model of clips of at least 3 latents")


def clip_seed(seed: int, *place: int) -> int:
    """Derives the seed of the clip at this place of a long video; the first one has the video's own."""
    return int(np.random.SeedSequence((seed, *place)).generate_state(1)[0]) if any(place) else seed


def sample_part(
    plan: Plan, seed: int, number: int, tail: Latents | None
) -> tuple[Iterable[tuple[Latents, int]], Latents]:
    """Samples part `number` of a video, after latents `tail` (None: nothing, for part 0).

    Returns an iterator of clips, each with how many of its first latents the video already shows, and the tail after
    which the next part comes.
    """
    known = None if tail is None else put_in_place(tail, range(plan.overlap), plan.predict.length)
    clip = plan.predict.sample(clip_seed(seed, number), known)
    shown = 0 if tail is None else plan.overlap
    after = clip[:, -plan.overlap :]
    if not plan.levels or plan.fill is None:
        return [(clip, shown)], after
    between = fill_gaps(plan.fill, clip[:, max(shown - 1, 0) :], seed, (number,), plan.levels)
    return ((clip, int(i > 0 or tail is not None)) for i, clip in enumerate(between)), after


def fill_gaps(fill: Clips, keys: Latents, seed: int, place: tuple[int, ...], levels: int) -> Iterator[Latents]:
    """Samples clips that run from each key to the next, with both at their ends: n keys give n - 1 clips.

    At more than one level each latent of these is a key of the next one.
    """
    for gap in range(keys.shape[1] - 1):
        here = (*place, gap + 1)
        clip = fill.sample(
            clip_seed(seed, *here), put_in_place(keys[:, gap : gap + 2], [0, fill.length - 1], fill.length)
        )
        if levels > 1:
            yield from fill_gaps(fill, clip, seed, here, levels - 1)
        else:
            yield clip


def sample_parts(plan: Plan, seed: int, number: int = 0, tail: Latents | None = None) -> Iterator[tuple[Latents, int]]:
    """Samples the clips of all parts from `number` on, see `sample_part`."""
    for i in itertools.count(number):
        clips, tail = sample_part(plan, seed, i, tail)
        yield from clips


def make_plan(
    generator: AnyGenerator,
    prompt: str | int,
    between: AnyGenerator | None = None,
    levels: int = 0,
    size: tuple[int, int] | None = None,
    **options: Any,
) -> Plan:
    """Plans one video of a prompt. `options` are fields of SampleConfig, `known` being the overlap; what lies between
    keys is sampled by `between` with its own defaults. Raises InputError if their latents differ."""

    def clips(generator: AnyGenerator, options: dict[str, Any]) -> Clips:
        make = lambda seed, known: np.asarray(generator.latents([prompt], size=size, seed=seed, known=known, **options))
        return Clips(make, generator.latent_shape(size=size)[0])

    if between is not None and between.latent_shape(size=size)[1:] != generator.latent_shape(size=size)[1:]:
        shapes = between.latent_shape(size=size)[1:], generator.latent_shape(size=size)[1:]
        raise InputError(
            f"latents between keys are {shapes[0]}, the keys {shapes[1]}: take two runs of one autoencoder"
        )
    overlap = dataclasses.replace(generator.defaults, **options).known
    fill = clips(between or generator, {} if between else options) if levels else None
    return Plan(clips(generator, options), overlap, fill, levels)


def decode_clips(
    generator: AnyGenerator, clips: Iterable[tuple[Latents, int]]
) -> Iterator[UInt8[np.ndarray, "b t h w c"]]:
    """Decodes what each clip adds to the video. It is decoded whole: the latents already shown are the others' past."""
    codec = generator.codec
    stride = codec.autoencoder.strides[0] if codec else 1
    for clip, shown in clips:
        yield generator.decode(clip)[:, shown * stride :]


class Progress:
    """An unfinished video: the frames of finished parts in STEM.frames, raw, and what the next part needs in STEM.npz.

    `identity` is all that decides what is in the video. One program at a time holds it, as a context manager. Raises
    InputError if another one does, and if what lies there is damaged or of another video.
    """

    def __init__(self, stem: Path, identity: str):
        self.state, self.frames, self.identity = stem.with_suffix(".npz"), stem.with_suffix(".frames"), identity
        self.number, self.tail, self.shape, self.count = 0, None, (0, 0, 0), 0
        self.frames.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self.frames.open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.frames} is being written by another program: wait for it, or give another --out"
            ) from None
        if self.state.exists():
            self._go_on()
        self._lock.truncate(self.count * math.prod(self.shape))  # a part that was interrupted is made again

    def _go_on(self) -> None:
        """Raises InputError for a state of another video, and for one that is damaged."""
        try:
            with np.load(self.state, allow_pickle=False) as saved:
                known = str(saved["identity"])
                self.number, self.tail, self.count = int(saved["number"]), saved["tail"], int(saved["count"])
                self.shape = tuple(map(int, saved["shape"]))
            there = self.frames.stat().st_size
            if min(self.shape) < 1 or min(self.number, self.count) < 1 or there < self.count * math.prod(self.shape):
                raise ValueError(f"{self.frames.name} is cut off")
        except Exception as error:  # of numpy and zipfile, many kinds
            raise InputError(
                f"{self.state} or {self.frames.name} beside it is damaged ({reason(error)}): delete both to begin again"
            ) from None
        if known != self.identity:
            raise InputError(
                f"{self.state} is of a video with other arguments or another model; "
                "give the ones it was begun with, another --out, or delete it"
            )

    def add(self, parts: Iterable[UInt8[np.ndarray, "t h w c"]], tail: Latents) -> None:
        """Writes one part: its frames as they come, then what the next part needs."""
        with self.frames.open("ab") as file:
            for video in parts:
                file.write(np.ascontiguousarray(video))
                self.shape, self.count = video.shape[1:], self.count + len(video)
        self.number, self.tail = self.number + 1, tail
        fresh = self.state.with_suffix(".part")
        with fresh.open("wb") as file:
            saved = dict(number=self.number, tail=tail, count=self.count, shape=self.shape)
            np.savez(file, identity=np.array(self.identity), **saved)
        fresh.replace(self.state)

    def read(self, start: int, count: int) -> UInt8[np.ndarray, "t h w c"]:
        """Reads `count` frames of the finished parts, from frame `start` on."""
        size = int(np.prod(self.shape))
        raw = np.fromfile(self.frames, np.uint8, count * size, offset=start * size)
        return raw.reshape(-1, *self.shape)

    def remove(self) -> None:
        """Deletes both files."""
        self.state.unlink()
        self.frames.unlink()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()


def write(
    generator: AnyGenerator,
    plan: Plan,
    stem: Path,
    frames: int,
    seed: int,
    identity: str,
    fps: float,
    mark: Callable[[np.ndarray], np.ndarray] = lambda video: video,
    report: Callable[[int], None] = lambda count: None,
) -> Path:
    """Writes STEM.mp4 with so many frames, and STEM.png with some. Started again, it resumes after the last whole part.

    Until then STEM.part.mp4 plays as far as it has come. `mark` is applied to each piece of the video as it comes,
    `report` gets the number of frames so far.
    """
    with Progress(stem, identity) as progress:
        return _write(progress, generator, plan, stem, frames, seed, fps, mark, report)


def _write(
    progress: Progress,
    generator: AnyGenerator,
    plan: Plan,
    stem: Path,
    frames: int,
    seed: int,
    fps: float,
    mark: Callable[[np.ndarray], np.ndarray],
    report: Callable[[int], None],
) -> Path:
    path, growing, fresh = (stem.with_suffix(suffix) for suffix in (".mp4", ".part.mp4", ".whole.mp4"))

    with Mp4Writer(growing, fps, growing=True) as out:

        def shown(clips: Iterable[tuple[Latents, int]]) -> Iterator[UInt8[np.ndarray, "t h w c"]]:
            for video in decode_clips(generator, clips):
                piece = mark(video[0])
                out.write(piece[: max(frames - progress.count, 0)])
                yield piece

        there = min(progress.count, frames)
        for start in range(0, there, BLOCK):
            out.write(progress.read(start, min(BLOCK, there - start)))
        while progress.count < frames:
            clips, tail = sample_part(plan, seed, progress.number, progress.tail)
            progress.add(shown(clips), tail)
            report(min(progress.count, frames))
    finish_growing(growing, fresh)
    some = sorted({round(i) for i in np.linspace(0, frames - 1, SHEET)})
    contact_sheet(stem.with_suffix(".png"), [[np.concatenate([progress.read(i, 1) for i in some])]])
    fresh.replace(path)
    progress.remove()
    return path
