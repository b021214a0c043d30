"""Chooses a few shapes for clips of many sizes, aspects and lengths, so that every batch of a training is of one shape.

All is a function of the clips' (frames, height, width). How well a shape suits a clip is the overlap of two volumes:
the pixels that the clip has within the limits, and those that the shape holds, see `overlap`.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from vidjax.errors import InputError

Shape = tuple[int, int, int]  # frames, height, width
# What is looked at of large data sets: that many different clips, evenly among the sorted ones, and as candidates the
# shapes nearest to the most clips, with the length of each if these are not too many.
MAX_CLIPS, MAX_SHAPES, MAX_CANDIDATES = 2048, 512, 2048
MAX_PASSES = 20  # over the chosen shapes, to exchange each for a better one


@dataclasses.dataclass(frozen=True)
class Limits:
    """What shapes may be: at most `frames` frames of at most `pixels` pixels each, multiples of `multiple` (frames;
    rows and columns)."""

    frames: int
    pixels: int
    multiple: tuple[int, int] = (1, 1)

    def __post_init__(self):
        step, side = self.multiple
        if min(self.multiple) < 1:
            raise InputError(f"data.multiple={self.multiple}: give two positive numbers, of frames and of pixels")
        if self.frames < step or self.pixels < side**2:
            raise InputError(
                f"data.frames={self.frames} frames of {self.pixels} pixels hold no shape in multiples of {step} frames "
                f"and {side} pixels, which the model needs: raise data.frames or data.size, or set data.multiple"
            )


def overlap(clips: Sequence[Shape], shapes: Sequence[Shape], limits: Limits) -> Float[np.ndarray, "{len(clips)} s"]:
    """Returns for each clip and shape the pixels that both have over those that either has: 1 where the clip is shown
    whole and nothing is enlarged, 0 where it has too few frames.

    A clip counts as long and as large as the limits allow, scaled down but never up; a shape shows it scaled to cover
    the picture, and cropped.
    """
    frames, height, width = np.array(clips, float).reshape(-1, 3).T[:, :, None]
    t, h, w = np.array(shapes, float).reshape(-1, 3).T[:, None, :]
    scale = np.minimum(1.0, np.sqrt(limits.pixels / (height * width)))
    has = np.minimum(frames, limits.frames) * height * width * scale**2
    holds = t * h * w
    shown = holds * np.minimum(1.0, scale / np.maximum(h / height, w / width)) ** 2
    return np.where(t <= frames, shown / (has + holds - shown), 0.0)


def nearest_shape(clip: Shape, limits: Limits) -> Shape | None:
    """Returns the shape within the limits that overlaps a clip most; None if it has too few frames for any."""
    step, side = limits.multiple
    frames = min(clip[0], limits.frames) // step * step
    if not frames:
        return None
    scale = min(1.0, math.sqrt(limits.pixels / (clip[1] * clip[2])))
    down = lambda n: int(n) // side * side
    around = lambda n: {max(down(n), side), down(n) + side}
    heights, widths = around(clip[1] * scale), around(clip[2] * scale)
    sizes = {(h, w) for h in heights for w in widths} | {(h, down(limits.pixels / h)) for h in heights}
    sizes |= {(down(limits.pixels / w), w) for w in widths}
    fitting = sorted((frames, h, w) for h, w in sizes if h and w and h * w <= limits.pixels)
    return fitting[int(overlap([clip], fitting, limits)[0].argmax())]


def choose_buckets(clips: Iterable[Shape], count: int, limits: Limits) -> list[Shape]:
    """Chooses at most `count` shapes, sorted, with a large mean overlap with the clips; the order of these does not
    matter. Some shape is as short as the shortest clip that can be used at all; more shapes never overlap less.

    The shape that adds most is taken in turn, and after each the ones before it are exchanged while that helps.
    """
    counted, near = Counter((min(t, limits.frames), h, w) for t, h, w in clips), Counter[Shape]()
    for clip, number in list(counted.items()):
        if shape := nearest_shape(clip, limits):
            near[shape] += number
        else:
            del counted[clip]
    if not near:
        return []
    common = sorted(near, key=lambda shape: (-near[shape], shape))[:MAX_SHAPES]
    shortest, sizes = min(t for t, *_ in near), {(h, w) for _, h, w in common}
    candidates = {(t, h, w) for t in {shortest, *(t for t, *_ in common)} for h, w in sizes}
    if len(candidates) > MAX_CANDIDATES:
        candidates = {*common, *((shortest, h, w) for h, w in sizes)}
    candidates = sorted(candidates)
    short = np.array([t == shortest for t, *_ in candidates])
    looked = sorted(counted)[:: len(counted) // MAX_CLIPS + 1]
    shared, weights = overlap(looked, candidates, limits), np.array([counted[clip] for clip in looked], float)

    def add(chosen: list[int]) -> tuple[list[int], float]:
        """The best further one; one that is short enough for every clip if none of these is."""
        sofar = shared[:, chosen].max(1, initial=0.0)
        total = weights @ np.maximum(shared, sofar[:, None])
        total[chosen] = -1.0
        if not short[chosen].any():
            total[~short] = -1.0
        best = int(total.argmax())
        return [*chosen, best], float(total[best])

    chosen, reached = add([])
    for _ in range(min(count, len(candidates)) - 1):
        more, total = add(chosen)
        if total <= reached * (1 + 1e-9):
            break
        chosen, reached = more, total
        for _ in range(MAX_PASSES):
            before = reached
            for k in range(len(chosen)):
                other, total = add(chosen[:k] + chosen[k + 1 :])
                if total > reached * (1 + 1e-9):
                    chosen, reached = other, total
            if reached == before:
                break
    return sorted(candidates[k] for k in chosen)


def assign(clips: Sequence[Shape], buckets: Sequence[Shape], limits: Limits) -> list[int | None]:
    """Returns the number of the bucket that overlaps each clip most; None for clips that are too short for all."""
    if not buckets or not clips:
        return [None] * len(clips)
    distinct = sorted(set(clips))
    shared = overlap(distinct, buckets, limits)
    best = {clip: int(row.argmax()) if row.any() else None for clip, row in zip(distinct, shared)}
    return [best[clip] for clip in clips]


def describe_buckets(clips: Sequence[Shape], buckets: Sequence[Shape], of: Sequence[int | None], limits: Limits) -> str:
    """Lists the shapes, the number of their clips, and the share of pixels lost to crops, cuts and enlargement."""
    counted = Counter((clip, k) for clip, k in zip(clips, of) if k is not None)
    rows = [f"{'frames':>7} {'size':>11} {'clips':>8}  lost to crops, cuts and enlargement"]
    total, lost = 0, 0.0
    for k, (t, h, w) in enumerate(buckets):
        own = sorted((clip, n) for (clip, j), n in counted.items() if j == k)
        shared = overlap([clip for clip, _ in own], [buckets[k]], limits)[:, 0]
        number, waste = sum(n for _, n in own), sum(n * (1 - s) for (_, n), s in zip(own, shared))
        rows.append(f"{t:7} {f'{h}x{w}':>11} {number:8}  {waste / max(number, 1):.1%}")
        total, lost = total + number, lost + waste
    rows.append(f"{'all':>7} {'':>11} {total:8}  {lost / max(total, 1):.1%}")
    return "\n".join(rows)
