"""Writes video files, pictures and contact sheets."""

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vidjax.runtime.storage import AnyPath, whole_file

FRAGMENT_FRAMES = 32


class Mp4Writer:
    """Writes an H.264 file as frames come: `with Mp4Writer(path, fps) as out: out.write(frames)`, any number of times.

    Odd sizes get their last row or column repeated (4:2:0 needs even ones). `crf` is x264's quality, 0 (lossless) to
    51. `threads`: 0 is one per core; the bytes depend on their number. A `growing` file plays while it is written, from
    fragments of `FRAGMENT_FRAMES` frames; see `finish_growing`.
    """

    def __init__(
        self, path: str | Path, fps: int | float, crf: int | float = 18, threads: int = 0, growing: bool = False
    ):
        import av

        Path(path).parent.mkdir(parents=True, exist_ok=True)
        options = {"movflags": "faststart"}
        if growing:
            options = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
        self._container = av.open(str(path), "w", format="mp4", options=options)
        self._rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))
        # The same bytes on every CPU: x264's AVX-512 code gives others each time it runs.
        self._options = {"crf": str(crf), "x264-params": "cpu-independent=1"} | (
            {"g": str(FRAGMENT_FRAMES)} if growing else {}
        )
        self._threads = threads
        self._stream = None

    def write(self, video: UInt8[np.ndarray, "t h w c"]) -> None:
        """Encodes frames, c 1 or 3, behind those before."""
        import av

        height, width = video.shape[1:3]
        video = np.pad(video, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._rate, options=self._options)
            self._stream.pix_fmt, self._stream.height, self._stream.width = "yuv420p", *video.shape[1:3]
            self._stream.codec_context.thread_count = self._threads
        for frame in np.broadcast_to(video, (*video.shape[:3], 3)):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Writes what the encoder still holds and closes the file."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
            self._stream = None
        self._container.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def finish_growing(growing: Path, path: Path) -> None:
    """Rewrites a growing file as an ordinary one, its index at the start, without encoding it again, and removes it."""
    import av

    with av.open(str(growing)) as old, av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    growing.unlink()


def slug(text: str) -> str:
    """Makes a file name from a caption."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48] or "sample"


def write_mp4(
    path: str | AnyPath, video: UInt8[np.ndarray, "t h w c"], fps: int | float, crf: int | float = 18
) -> None:
    """Writes a clip of 1 or 3 channels as an H.264 mp4 that browsers play, whole."""
    with whole_file(path) as file, Mp4Writer(file, fps, crf) as out:
        out.write(video)


def save_png(path: str | Path, image: UInt8[np.ndarray, "h w c"]) -> None:
    """Writes a picture of 1 or 3 channels as a PNG."""
    from PIL import Image

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(path, "PNG")


def contact_sheet(
    path: str | AnyPath,
    rows: Sequence[Iterable[UInt8[np.ndarray, "t h w c"]]],
    labels: Sequence[str] = (),
    zoom: int = 1,
) -> None:
    """Writes a PNG with one row per entry of `rows`: its videos side by side, all frames in order, the label above."""
    from PIL import Image, ImageDraw

    gap, line = 4, 14 if labels else 0
    strips = []
    for videos in rows:
        parts = []
        for video in videos:
            frames = np.concatenate(list(np.broadcast_to(video, (*video.shape[:3], 3))), axis=1)
            parts += [frames, np.full((frames.shape[0], gap, 3), 255, np.uint8)]
        strips.append(np.concatenate(parts[:-1], axis=1).repeat(zoom, 0).repeat(zoom, 1))
    width = max(s.shape[1] for s in strips)
    sheet = Image.new("RGB", (width, sum(s.shape[0] + line + gap for s in strips)), "white")
    y = 0
    for i, strip in enumerate(strips):
        if i < len(labels):
            ImageDraw.Draw(sheet).text((2, y + 1), labels[i], fill="black")
        sheet.paste(Image.fromarray(strip), (0, y + line))
        y += strip.shape[0] + line + gap
    with whole_file(path) as file:
        sheet.save(file, "PNG")
