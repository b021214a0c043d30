"""A user's folder: the shipped clips cut to five shapes, of other sizes, aspects and lengths."""

from pathlib import Path

from vidjax.data.readers import make_source
from vidjax.data.video_reading import read_frames
from vidjax.data.video_writing import write_mp4

SHAPES = ((24, 32, 32), (24, 32, 64), (24, 64, 32), (12, 32, 48), (5, 48, 32))  # frames, height, width


def write_clips(folder: Path) -> Path:
    """Ten clips with captions, two of each shape."""
    source = make_source("webvid", "", "train")
    for k in range(10):
        (frames, height, width), item = SHAPES[k % 5], source[k % len(source)]
        top = 16 * (k // 8)  # the last ones are other parts of the first
        video = read_frames(item.name, range(frames))[:, top : top + height, :width]
        write_mp4(folder / f"{k}.mp4", video, 12)
        (folder / f"{k}.txt").write_text(f"{item.text}\nclip {k}")
    return folder
