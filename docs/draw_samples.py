"""Draws docs/samples.webp: a finished run's samples in motion, one of each of its first captions.

python docs/draw_samples.py runs/lvdm
"""

import json
import sys
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

import vidjax
from vidjax.data.animation import encode_animation

COLUMNS, ROWS, SIDE, FPS = 4, 2, 128, 8.0


def enlarged(path: Path) -> UInt8[np.ndarray, "t h w 3"]:
    """Returns a video's frames at `SIDE` pixels."""
    frames = [Image.fromarray(frame) for frame in vidjax.read_frames(path)]
    return np.stack([np.asarray(frame.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for frame in frames])


def main() -> None:
    """Writes the picture beside this file."""
    run = Path(sys.argv[1])
    entries = json.loads((run / "summary.json").read_text())["samples"][: COLUMNS * ROWS]
    videos = [enlarged(run / entry["videos"][0]) for entry in entries]
    rows = [np.concatenate(videos[i : i + COLUMNS], axis=2) for i in range(0, COLUMNS * ROWS, COLUMNS)]
    Path(__file__).with_name("samples.webp").write_bytes(encode_animation(np.concatenate(rows, axis=1), FPS, "WEBP"))


if __name__ == "__main__":
    main()
