"""Shortens a recipe's windows where all clips are too short for them, as single clips to tune on often are."""

import dataclasses
from itertools import islice

from vidjax.data import transforms
from vidjax.data.pipeline import DataConfig
from vidjax.data.source import Source
from vidjax.data.video_reading import BrokenClip

MAX_CLIPS_TRIED = 64  # opened to find one that is long enough


def fit_window(config: DataConfig, source: Source) -> tuple[DataConfig, str]:
    """Returns (`config`, "") if a clip has such a window, else (a config that fits the longest clip, what has changed,
    for the user). That takes as many frames as asked for, as far apart as the clip allows, and holds none out."""
    longest = 0
    for item in islice((source[i] for i in range(len(source))), MAX_CLIPS_TRIED):
        try:
            with item.open() as video:
                frames, fps = video.frames, video.fps
        except BrokenClip:  # is named when it is read
            continue
        step = transforms.frame_step(fps, config.stride, config.fps)
        if transforms.window_span(config.frames, step) <= frames - config.heldout:
            return config, ""
        longest = max(longest, frames)
    if not longest:
        return config, ""
    count = min(config.frames, longest)
    stride = max((longest - 1) // max(count - 1, 1), 1)
    fitted = dataclasses.replace(config, frames=count, stride=stride, fps=None, heldout=0)
    asked = f"data.frames={config.frames}, " + (f"fps={config.fps}" if config.fps else f"stride={config.stride}")
    takes = f"frames={count}, stride={stride}"
    if config.heldout:
        asked, takes = f"{asked}, heldout={config.heldout}", f"{takes}, heldout=0"
    return fitted, f"the clip has {longest} frames, too few for {asked}: takes {takes}"
