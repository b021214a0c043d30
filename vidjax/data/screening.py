"""Decides which parts of a clip are worth keeping, and says why the others are not."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from vidjax.data.source import Item, OpenClip
from vidjax.errors import InputError, check_range

COMPARED_PIXELS = 64  # of the shorter side of the frames that are compared
CHUNK_FRAMES = 512  # decoded at a time
HASHED_FRAMES = 8  # of a clip, with 64 bits each
MAX_DIFFERENT_BITS = 25  # of all of them, in clips that are alike


@dataclass(frozen=True)
class Rules:
    """Keeps clips of at least `frames_min` frames and `size_min` pixels on the shorter side, cut into pieces of at most
    `seconds` (0: any length), and at scene cuts if `scenes`.

    duplicates: "exact" drops clips whose frames are another's, also in another container; "alike" those whose frames
    look like another's to a perceptual hash (re-encoded, scaled, or takes that hardly differ); "keep" none.
    """

    frames_min: int = 16
    size_min: int = 64
    seconds: float = 0.0
    scenes: bool = False
    duplicates: str = "exact"

    def __post_init__(self):
        check_range("--", 0, 10**9, seconds=self.seconds)
        if self.duplicates not in ("keep", "exact", "alike"):
            raise InputError(f"duplicates={self.duplicates!r} is unknown: choose keep, exact or alike")


@dataclass(frozen=True)
class Part:
    """Frames start..stop-1 of a clip, with their fingerprint in hexadecimal."""

    start: int
    stop: int
    print: str


@dataclass(frozen=True)
class Drop:
    """A part of a clip that is dropped: its kind, which is counted, and the reason for the user."""

    kind: str
    why: str


@dataclass(frozen=True)
class Finding:
    """The parts of a clip that are kept, and those that are dropped."""

    name: str
    frames: int = 0
    fps: float = 0.0
    parts: Sequence[Part] = ()
    drops: Sequence[Drop] = field(default_factory=list)


def examine(item: Item, rules: Rules) -> Finding:
    """Decodes every frame of a clip and returns its parts; one that cannot be read is dropped."""
    try:
        with item.open() as video:
            short = min(video.height, video.width)
            if short < rules.size_min:
                return Finding(item.name, drops=[Drop("too small", f"{video.width}x{video.height} pixels")])
            if video.frames < rules.frames_min:
                return Finding(item.name, drops=[Drop("too short", f"{video.frames} frames")])
            return _parts(item.name, video, rules)
    except Exception as error:  # decoders raise many kinds; none of them is worth the rest of the data set
        return Finding(item.name, drops=[Drop("unreadable", " ".join(str(error).split())[:300] or repr(error))])


def _parts(name: str, video: OpenClip, rules: Rules) -> Finding:
    look = _Look(rules)
    for frame in _small(video):
        look(frame)
    longest = max(int(rules.seconds * video.fps), rules.frames_min) if rules.seconds else video.frames
    parts, drops = [], []
    for first, last in itertools.pairwise([0, *look.cuts, video.frames]):
        for start in range(first, last, longest):
            stop = min(start + longest, last)
            if stop - start >= rules.frames_min:
                parts.append(Part(start, stop, look.print(start, stop)))
            else:
                kind = "scene cuts" if last - first < rules.frames_min else "remainder"
                drops.append(Drop(kind, f"frames {start} to {stop - 1} are too few"))
    return Finding(name, video.frames, float(video.fps), parts, drops)


def _small(video: OpenClip) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yields all frames, scaled down."""
    scale = min(1.0, COMPARED_PIXELS / min(video.height, video.width))
    size = (round(video.height * scale), round(video.width * scale))
    for start in range(0, video.frames, CHUNK_FRAMES):
        for frame in video.read(range(start, min(start + CHUNK_FRAMES, video.frames)), size):
            yield np.broadcast_to(frame, (*size, 3))


class _Look:
    """Collects scene cuts and the material of fingerprints from small frames as they pass."""

    def __init__(self, rules: Rules):
        self.cuts, self._frames, self._alike, self._detect = [], [], rules.duplicates == "alike", None
        if rules.scenes:
            from scenedetect import AdaptiveDetector, FrameTimecode

            detector = AdaptiveDetector(min_scene_len=0)
            self._detect = lambda i, frame: detector.process_frame(
                FrameTimecode(i, 25.0), np.ascontiguousarray(frame[..., ::-1])
            )

    def __call__(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        if self._detect:
            self.cuts += [cut.frame_num for cut in self._detect(len(self._frames), frame)]
        if self._alike:
            from PIL import Image

            self._frames.append(Image.fromarray(frame).convert("L").resize((32, 32), Image.Resampling.LANCZOS))
        else:
            self._frames.append(hashlib.blake2b(frame.tobytes(), digest_size=16).digest())

    def print(self, start: int, stop: int) -> str:
        """Returns a hash of all frames, or perceptual hashes of some, which differ in few bits if the frames look
        alike."""
        if not self._alike:
            return hashlib.blake2b(b"".join(self._frames[start:stop]), digest_size=16).hexdigest()
        from imagehash import phash

        places = np.linspace(start, stop - 1, HASHED_FRAMES).round().astype(int)
        return "".join(str(phash(self._frames[i])) for i in places)


class Seen:
    """Fingerprints of the clips that are kept, by name."""

    def __init__(self, rules: Rules):
        self._rules, self._known = rules, {}

    def find(self, mark: str) -> str | None:
        """Returns the name of an equal fingerprint, or of one with at most `MAX_DIFFERENT_BITS` others; else None."""
        if self._rules.duplicates == "keep":
            return None
        for band in self._bands(mark):
            for other, name in self._known.get(band, ()):
                if (int(mark, 16) ^ int(other, 16)).bit_count() <= (
                    MAX_DIFFERENT_BITS if self._rules.duplicates == "alike" else 0
                ):
                    return name
        return None

    def add(self, mark: str, name: str) -> None:
        """Adds a fingerprint."""
        for band in self._bands(mark):
            self._known.setdefault(band, []).append((mark, name))

    def _bands(self, mark: str) -> list[tuple[int, str]]:
        """Cuts a fingerprint into bands: two that differ in fewer bits than there are bands have one in common."""
        width = 4 if self._rules.duplicates == "alike" else len(mark)
        return [(i, mark[i : i + width]) for i in range(0, len(mark), width)]
