"""Reads video files: only the frames asked for are decoded; what cannot be read raises BrokenClip."""

import io
import math
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vidjax.data.mp4_tables import read_promise
from vidjax.data.orientation import Turn, parse_matrix
from vidjax.runtime.limits import MAX_DECODED, MAX_FRAMES, MAX_PIXELS, MAX_SAMPLES

# Files with videos; `pictures` reads pictures. Not lists of other files or addresses (concat, hls, image2), whatever
# their name ends in.
FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,gif,flv,asf,ogg,nut,mxf,ivf,h264,hevc,m4v,yuv4mpegpipe,dv"
NO_TIME = -(2**63)
MAX_KEY_FRAMES_TRIED = 8  # decoded to learn how frames are to be turned


class BrokenClip(ValueError):
    """A clip that cannot be used; the message is the reason, without the clip's name."""


@dataclass(frozen=True)
class VideoInfo:
    """Number of frames, mean frames per second, and size in pixels of a file."""

    frames: int
    fps: float
    height: int
    width: int


class Video:
    """An open video file (a path, or the encoded bytes themselves), read at random. A context manager.

    Opening walks through the packets and decodes one frame: the time stamp of every frame is known, so a frame number
    means the n-th frame shown, also at a variable frame rate, and so is how to turn them: frames, height and width are
    as a player shows them. Raises BrokenClip if there is no readable video.
    """

    channels = 3

    def __init__(self, file: str | Path | bytes):
        from av.error import FFmpegError

        self._file = file
        _check_file(file)
        try:
            self._container = _open(file)
        except (FFmpegError, OSError, ValueError) as error:
            raise BrokenClip(_reason(error)) from error
        try:
            self._index()
        except (FFmpegError, OSError, ValueError) as error:
            self._container.close()
            raise error if isinstance(error, BrokenClip) else BrokenClip(_reason(error)) from error

    def _index(self) -> None:
        """Collects the time stamps of all frames and of key frames, in order of display."""
        stream = self._stream = _stream(self._container)
        # Only mp4's header counts the samples that are in the file; others (AVI) may promise anything.
        claimed = stream.frames if "mp4" in self._container.format.name else 0
        check_size(stream.codec_context.height, stream.codec_context.width)
        times, keys, packets, tried, turn = array("q"), array("b"), 0, 0, None
        for packet in self._container.demux(stream) if claimed <= MAX_FRAMES else ():
            if turn is None and tried < MAX_KEY_FRAMES_TRIED and packet.size and packet.is_keyframe:
                turn, tried = _turn(stream, packet), tried + 1
            packets += bool(packet.size)
            if packets > MAX_FRAMES:
                break
            if packet.size and not packet.is_discard:
                times.append(NO_TIME if packet.pts is None else packet.pts)
                keys.append(packet.is_keyframe)
        if max(packets, claimed) > MAX_FRAMES:
            raise BrokenClip(f"more than {MAX_FRAMES} frames: cut it into several videos")
        if not times:
            raise BrokenClip("no frames in it")
        if packets < 0.95 * claimed:
            raise BrokenClip(f"truncated: {packets} of {claimed} frames")
        shown, key = np.array(times), np.array(keys, bool)
        pts = np.unique(shown)
        self._seekable = len(pts) == len(shown) and pts[0] != NO_TIME
        self._pts = pts if self._seekable else np.arange(len(shown))
        self._keys = np.sort(shown[key]) if self._seekable else shown[:0]
        self._turn = turn or Turn()
        self.height, self.width = self._turn.size(stream.codec_context.height, stream.codec_context.width)
        self.frames = len(self._pts)
        rate = stream.average_rate or stream.guessed_rate
        self.fps = float(rate) if rate and rate > 0 else 25.0

    @property
    def info(self) -> VideoInfo:
        """Frames, rate and size."""
        return VideoInfo(self.frames, self.fps, self.height, self.width)

    @property
    def encoded(self) -> bytes:
        """The file itself."""
        return self._file if isinstance(self._file, bytes) else Path(self._file).read_bytes()

    def read(
        self, indices: Sequence[int] | np.ndarray, size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "t h w 3"]:
        """Returns the frames at `indices` (any order, repeats allowed) as RGB, scaled to `size` (height, width) if
        given.

        Decoding starts at the nearest key frame before each run of frames. Raises BrokenClip if frames do not decode,
        change their size or are more than memory should hold, IndexError for an index outside the clip.
        """
        from av.error import FFmpegError

        wanted = sorted({int(i) for i in indices})
        if not wanted:
            raise IndexError("no frames asked for")
        if wanted[0] < 0 or wanted[-1] >= self.frames:
            raise IndexError(f"frames {wanted[0]}..{wanted[-1]} of a clip of {self.frames}")
        size = size or (self.height, self.width)
        check_decoded(len(indices), *size)
        convert = _Converter(size, self._turn)
        try:
            found = (self._seek_read(wanted, convert) if self._seekable else None) or self._scan_read(wanted, convert)
        except (FFmpegError, OSError) as error:
            raise BrokenClip(_reason(error)) from error
        return np.stack([found[int(i)] for i in indices])

    def _seek_read(self, wanted: list[int], convert: "_Converter") -> dict[int, np.ndarray] | None:
        """Reads frames by seeking; None if a seek did not land at or before its target (formats without an index)."""
        frames, found, position = None, {}, None
        for i in wanted:
            target = int(self._pts[i])
            before = np.searchsorted(self._keys, target, "right")
            key = int(self._keys[before - 1] if before else self._pts[0])
            if position is None or key > position:
                self._container.seek(key, stream=self._stream, backward=True)
                frames = self._container.decode(self._stream)
            for frame in frames or ():
                if frame.pts is None or frame.pts > target:
                    return None
                position = frame.pts
                if frame.pts == target:
                    found[i] = convert(frame)
                    break
            else:
                return None
        return found

    def _scan_read(self, wanted: list[int], convert: "_Converter") -> dict[int, np.ndarray]:
        """Reads frames by decoding from the start and counting."""
        needed, found = set(wanted), {}
        with _open(self._file) as container:
            for i, frame in enumerate(container.decode(_stream(container))):
                if i in needed:
                    found[i] = convert(frame)
                if len(found) == len(needed):
                    return found
        raise BrokenClip(f"frame {min(needed - found.keys())} of {self.frames} does not decode")

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class ArrayVideo:
    """Frames already in memory, uint8 [t, h, w, c], read like a Video; an image is a clip of one frame."""

    def __init__(self, frames: UInt8[np.ndarray, "t h w c"], fps: int | float = 1.0):
        self._frames, self.fps = frames, fps
        self.frames, self.height, self.width, self.channels = frames.shape

    def read(
        self, indices: Sequence[int] | np.ndarray, size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "t h w c"]:
        """Returns the frames at `indices`, scaled to `size` (height, width) if given."""
        size = size or (self.height, self.width)
        check_decoded(len(indices), *size, self.channels)
        return resize(self._frames[np.asarray(indices, int)], size)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def probe(path: str | Path | bytes) -> VideoInfo:
    """Returns frame count, rate and size of a video file. Raises BrokenClip."""
    with Video(path) as video:
        return video.info


def read_frames(
    path: str | Path | bytes, indices: Sequence[int] | np.ndarray | None = None, size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "t h w 3"]:
    """Reads RGB frames of a file, by default all, scaled to `size` (height, width) if given. Raises BrokenClip."""
    with Video(path) as video:
        return video.read(range(video.frames) if indices is None else indices, size)


class _Converter:
    """Converts decoded frames to RGB arrays of one size, as they are shown. One scaler, which is costly to set up,
    serves the whole clip."""

    def __init__(self, size: tuple[int, int], turn: Turn):
        from av.video.reformatter import Interpolation, VideoReformatter

        self._size, self._turn, self._first = turn.size(*size), turn, None
        self._scaler, self._colours = VideoReformatter(), VideoReformatter()
        self._methods = {True: Interpolation.AREA, False: Interpolation.BICUBIC}

    def __call__(self, frame) -> np.ndarray:
        shape = (frame.height, frame.width)
        if self._first not in (None, shape):
            raise BrokenClip(f"its size changes from {self._first[1]}x{self._first[0]} to {shape[1]}x{shape[0]}")
        self._first = shape
        if self._size != shape:  # to all of the chroma first: straight to RGB would halve its width
            method = self._methods[self._size[0] < shape[0] or self._size[1] < shape[1]]
            frame = self._scaler.reformat(frame, self._size[1], self._size[0], "yuv444p", interpolation=method)
        return self._turn(self._colours.reformat(frame, format="rgb24").to_ndarray())


def check_size(height: int, width: int) -> None:
    """Raises BrokenClip for a size of frames that only a broken header can ask for."""
    if not 0 < height * width <= MAX_PIXELS:
        raise BrokenClip(f"frames of {width}x{height} pixels: between 1 and {MAX_PIXELS} pixels are read")


def check_decoded(frames: int, height: int, width: int, channels: int = 3) -> None:
    """Raises BrokenClip for frames of more than `MAX_DECODED` bytes at once."""
    size = math.prod((frames, height, width, channels))
    if size > MAX_DECODED:
        raise BrokenClip(
            f"{frames} frames of {width}x{height} are {size / 2**30:.1f} GiB at once, {MAX_DECODED / 2**30:g} are the "
            "most: take fewer frames, or a smaller size"
        )


def _check_file(file: str | Path | bytes) -> None:
    """Raises BrokenClip for files that must not be opened: a pipe would wait for ever, a bomb fill the memory."""
    if not isinstance(file, bytes) and not os.path.isfile(file):
        raise BrokenClip("not a file" if os.path.exists(file) else "no such file")
    try:
        with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as opened:
            tables = read_promise(opened)
    except OSError as error:
        raise BrokenClip(_reason(error)) from error
    if not tables.size:
        raise BrokenClip("zero bytes")
    if tables.bytes > tables.size:
        raise BrokenClip(f"its tables promise {tables.bytes} bytes of frames, the file has {tables.size}")
    if tables.samples > MAX_SAMPLES:
        raise BrokenClip(f"its tables promise {tables.samples} frames and sounds: cut it into several videos")


def _open(file: str | Path | bytes) -> Any:
    """Opens a file as such, also where its path looks like an address ("http:", "concat:"), and opens nothing else."""
    import av

    source = io.BytesIO(file) if isinstance(file, bytes) else f"file:{file}"
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    try:
        return av.open(source, "r", container_options=options)
    except UnicodeDecodeError:  # titles that are not in UTF-8; from version 19 on av never raises this
        source = io.BytesIO(file) if isinstance(file, bytes) else source
        return av.open(source, "r", metadata_errors="ignore", container_options=options)


def _turn(stream: Any, packet: Any) -> Turn | None:
    """Reads from a key frame how frames are turned; None if it does not decode."""
    from av.error import FFmpegError
    from av.sidedata.sidedata import Type

    try:
        frames = packet.decode() or stream.decode(None)
    except FFmpegError:
        frames = []
    stream.codec_context.flush_buffers()
    matrix = frames[0].side_data.get(Type.DISPLAYMATRIX) if frames else None
    return parse_matrix(bytes(matrix)) if matrix else Turn() if frames else None


def _stream(container: Any) -> Any:
    """Returns the first video stream. Raises BrokenClip if there is none that can be decoded."""
    if not container.streams.video:
        raise BrokenClip("no video stream in it")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise BrokenClip("no decoder for it")
    stream.codec_context.thread_count = 1  # one core a reader; several clips are read side by side
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # of frames that are larger than the header says
    return stream


def _reason(error: Exception) -> str:
    return f"not a readable video ({getattr(error, 'strerror', None) or error})"


def resize(video: UInt8[np.ndarray, "t h w c"], size: tuple[int, int]) -> UInt8[np.ndarray, "t h2 w2 c"]:
    """Scales frames to (height, width), bicubic with antialiasing; unchanged if they have that size. c is 1 or 3."""
    if video.shape[1:3] == tuple(size):
        return video
    from PIL import Image

    frames = [Image.fromarray(f.squeeze(-1) if f.shape[-1] == 1 else f) for f in video]
    scaled = [np.asarray(f.resize((size[1], size[0]), Image.Resampling.BICUBIC)) for f in frames]
    return np.stack(scaled).reshape(len(video), *size, video.shape[-1])
