"""Groups the clips of a data set by the shape that their windows are cut to, and by the folder that they come from."""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vidjax.data import transforms
from vidjax.data.buckets import Shape, assign, choose_buckets, describe_buckets
from vidjax.data.config import DataConfig
from vidjax.data.source import Source
from vidjax.data.video_reading import BrokenClip
from vidjax.errors import InputError
from vidjax.runtime.processes import on_first_process
from vidjax.runtime.progress import watch

THREADS = 4  # that look at clips where data.workers=0
NAMED = 1000  # clips that are left out and whose reasons are kept


@dataclass(frozen=True)
class Group:
    """Clips that are cut to one shape: sorted lists of their numbers, one for each folder or for all, and how often
    each is drawn from."""

    shape: Shape
    members: tuple[Sequence[int], ...]
    weights: tuple[float, ...]

    @property
    def share(self) -> float:
        """How often the group is drawn from."""
        return sum(self.weights)

    def draw(self, rng: np.random.Generator) -> int:
        """Returns the number of a random clip."""
        chosen = 0
        if len(self.members) > 1:
            chosen = int(rng.choice(len(self.members), p=np.divide(self.weights, self.share)))
        return int(self.members[chosen][int(rng.integers(len(self.members[chosen])))])

    def from_clip(self, index: int) -> Iterator[int]:
        """Yields the group's clips from `index` on, first those of its folder, after whose last comes the first."""
        for members in sorted(self.members, key=lambda members: not _has(members, index)):
            place = bisect.bisect_left(members, index) if _has(members, index) else 0
            yield from itertools.chain(members[place:], members[:place])

    def has(self, index: int) -> bool:
        """Whether a clip is in the group."""
        return any(_has(members, index) for members in self.members)


def _has(members: Sequence[int], index: int) -> bool:
    place = bisect.bisect_left(members, index)
    return place < len(members) and members[place] == index


@dataclass(frozen=True)
class Groups:
    """All groups of a data set, why some clips are in none, and a table of the buckets that were chosen, if any."""

    groups: tuple[Group, ...]
    left_out: dict[int, str]
    table: str = ""

    def stand_ins(self, group: Group, index: int) -> Iterator[int]:
        """Yields the clips that may stand in for clip `index` of a group: those of the group, then longer ones."""
        yield from group.from_clip(index)
        for other in self.groups:
            if other is not group and other.shape[0] >= group.shape[0]:
                yield from itertools.chain(*other.members)


def group_clips(source: Source, config: DataConfig) -> Groups:
    """Puts clips into groups: of one shape unless `config.buckets` asks for more, which opens every clip once.

    The first process looks at the clips, so that all have the same groups. Raises InputError if no clip can be used, or
    none has `config.frames` frames.
    """
    if not config.buckets:
        shape = (config.frames, *config.hw)
        return Groups(tuple(_weighted(source, config, [(shape, range(len(source)))])), {})
    found = on_first_process(lambda: _choose(source, config))
    shapes = [tuple(shape) for shape in found["shapes"]]
    of = np.frombuffer(found["of"].encode(), np.uint8) - ord("0")
    numbers = [(shape, np.flatnonzero(of == k).tolist()) for k, shape in enumerate(shapes)]
    left_out = {int(index): why for index, why in found["left_out"].items()}
    return Groups(tuple(_weighted(source, config, numbers)), left_out, found["table"])


def _weighted(source: Source, config: DataConfig, numbers: Sequence[tuple[Shape, Sequence[int]]]) -> Iterator[Group]:
    """Yields a group for each shape and its clips; folders with weights share the examples as these say."""
    if config.weights is None:
        yield from (Group(shape, (own,), (float(len(own)),)) for shape, own in numbers if len(own))
        return
    bounds = list(itertools.pairwise((0, *itertools.accumulate(source.parts or (len(source),)))))
    cut = [[own[slice(*(bisect.bisect_left(own, bound) for bound in ends))] for ends in bounds] for _, own in numbers]
    sizes = [sum(map(len, column)) for column in zip(*cut)]
    for k, size in enumerate(sizes):
        if not size:
            raise InputError(f"data.path={config.folders[k][1]!r} has no clip that can be used: leave it out")
    for (shape, _), row in zip(numbers, cut):
        found = [(own, w * len(own) / size) for own, w, size in zip(row, config.weights, sizes) if len(own)]
        if found:
            yield Group(shape, *map(tuple, zip(*found)))


def _choose(source: Source, config: DataConfig) -> dict:
    """Measures all clips, chooses the buckets and writes down, as plain data, which clip is in which."""
    limits = config.limits  # fails first
    with ThreadPoolExecutor(config.workers or THREADS) as pool:
        looked = pool.map(lambda i: _measure(source, config, i), range(len(source)))
        shapes = list(watch(looked, "looking at clips", "clip", len(source)))
    clips = [shape if isinstance(shape, tuple) else (0, 1, 1) for shape in shapes]
    buckets = choose_buckets(clips, config.buckets, limits)
    of = assign(clips, buckets, limits)
    why = lambda i: shapes[i] if isinstance(shapes[i], str) else f"too short: {clips[i][0]} frames to train on"
    out = [i for i, k in enumerate(of) if k is None]
    first = f" (the first one, {source[out[0]].name}: {why(out[0])})" if out else ""
    if not buckets:
        raise InputError(f"none of the {len(clips)} clips can be used{first}: check data.path and data.heldout")
    longest = max(t for t, *_ in clips)
    if longest < config.frames:
        pace = f"data.fps={config.fps}" if config.fps else f"data.stride={config.stride}"
        raise InputError(
            f"data.frames={config.frames}: the longest of {len(clips)} clips has {longest} frames to train on ({pace}, "
            f"data.heldout={config.heldout}): set data.frames={longest}"
        )
    used = sorted({k for k in of if k is not None})
    number = {k: chr(ord("0") + place) for place, k in enumerate(used)}
    table = describe_buckets(clips, [buckets[k] for k in used], [k if k is None else used.index(k) for k in of], limits)
    table += f"\n{len(out)} clips are left out{first}" if out else ""
    left_out = {str(i): why(i) for i in out[:NAMED]}
    held = "".join("/" if k is None else number[k] for k in of)
    return {"shapes": [buckets[k] for k in used], "of": held, "left_out": left_out, "table": table}


def _measure(source: Source, config: DataConfig, index: int) -> Shape | str:
    """Returns how many frames a window of a clip may have, and its size; or why it cannot be read."""
    try:
        with source[index].open() as video:
            step = transforms.frame_step(video.fps, config.stride, config.fps)
            frames = transforms.longest_window(max(video.frames - config.heldout, 0), step)
            return frames, video.height, video.width
    except BrokenClip as why:
        return str(why)
