"""What the tables of an mp4 or mov file promise, before a decoder believes them and makes room for it."""

import os
from io import BufferedIOBase

# The boxes of ISO 14496-12 and of QuickTime that hold boxes.
HOLDERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"edts", b"dinf", b"mvex", b"udta", b"tref"}


def promised(file: BufferedIOBase) -> tuple[int, int]:
    """(bytes of all samples that tables promise without listing them, bytes of the file).

    A sample size box (stsz) may give one size for all samples, a fragment (trun) none for any: a few bytes then stand
    for billions of samples. Listed ones take room in the file themselves. (0, size) for what is no such file.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(4)
    return (_promised(file, 0, size) if file.read(4) in (b"ftyp", b"moov", b"mdat", b"free", b"wide") else 0), size


def _promised(file: BufferedIOBase, at: int, end: int, depth: int = 0) -> int:
    total = 0
    while at + 8 <= end and depth < 16:
        file.seek(at)
        head = file.read(24)
        length, kind, body = int.from_bytes(head[:4]), head[4:8], 8
        if length == 1:  # 64 bits of it follow
            length, body = int.from_bytes(head[8:16]), 16
        after = at + length if length >= body else end
        if kind in HOLDERS:
            total += _promised(file, at + body, min(after, end), depth + 1)
        elif kind == b"stsz":
            total += int.from_bytes(head[12:16]) * int.from_bytes(head[16:20])
        elif kind == b"trun" and not int.from_bytes(head[9:12]) & 0xF00:  # nothing listed
            total += int.from_bytes(head[12:16])
        at = after
    return total
