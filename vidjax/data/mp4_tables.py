"""Reads how much the tables of an mp4 or mov file promise, before a decoder believes them and allocates it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase
from typing import NamedTuple

# The boxes of ISO 14496-12 and of QuickTime that hold boxes.
HOLDERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"edts", b"dinf", b"mvex", b"udta", b"tref"}


class Promise(NamedTuple):
    """Bytes of all samples that a file of `size` bytes does not list one by one, and the number of samples to allocate
    (32 bytes each in libav, so that a byte in a file may cost 32 in memory)."""

    bytes: int
    samples: int
    size: int


@dataclass
class _Track:
    """A track's kind, (number, duration) of its time table, and number of samples."""

    handlers: set[bytes] = field(default_factory=set)
    ticks: set[tuple[int, int]] = field(default_factory=set)
    samples: int = 0


def read_promise(file: BufferedIOBase) -> Promise:
    """Adds up what the file promises; zero if it is neither mp4 nor mov.

    A sample size box (stsz) may give one size for all samples, a fragment (trun) none for any: a few bytes then stand
    for billions of samples. Sound whose samples are one tick each is read in chunks, without room for each.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(4)
    claim, tracks = 0, [_Track()]
    if file.read(4) in (b"ftyp", b"moov", b"mdat", b"free", b"wide"):
        for kind, body in _boxes(file, 0, size):
            first, second, third = (int.from_bytes(body[at : at + 4]) for at in (4, 8, 12))
            track = tracks[-1]
            if kind == b"trak":
                tracks.append(_Track())
            elif kind == b"hdlr" and body[8:12] in (b"soun", b"vide"):
                track.handlers.add(body[8:12])
            elif kind == b"stts":
                track.ticks.add((first, third))
            elif kind == b"stsz":
                claim += first * second
                track.samples += second
            elif kind == b"trun":
                claim += 0 if int.from_bytes(body[1:4]) & 0xF00 else first  # listed ones take room in the file
                tracks[0].samples += first
    lists = (track.samples for track in tracks if (track.handlers, track.ticks) != ({b"soun"}, {(1, 1)}))
    return Promise(claim, sum(lists), size)


def _boxes(file: BufferedIOBase, at: int, end: int, depth: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Yields kind and first 16 bytes of the boxes between two offsets; inner boxes follow their holder."""
    while at + 8 <= end and depth < 16:
        file.seek(at)
        head = file.read(32)
        length, kind, start = int.from_bytes(head[:4]), head[4:8], 8
        if length == 1:  # 64 bits of it follow
            length, start = int.from_bytes(head[8:16]), 16
        after = at + length if length >= start else end
        yield kind, head[start : start + 16]
        if kind in HOLDERS:
            yield from _boxes(file, at + start, min(after, end), depth + 1)
        at = after
