"""Measures in pixels whether samples show the clip that their caption names, against windows that no stage trained on.

Numpy. Videos are uint8; the samples i of one list belong to the caption of clip i of the other list.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from vidjax.metrics.reconstruction import psnr

Video = UInt8[np.ndarray, "t h w c"] | Float[np.ndarray, "t h w c"]
Windows = Sequence[UInt8[np.ndarray, "_ t h w c"]]  # one array per clip or caption


def nearest(sample: Video, windows_by_clip: Windows) -> tuple[int, float]:
    """Returns the clip with the window nearest to the sample, and the PSNR (dB) to that window."""
    best = [float(psnr(windows, sample[None]).max()) for windows in windows_by_clip]
    clip = int(np.argmax(best))
    return clip, best[clip]


def retrieval(samples_by_caption: Windows, windows_by_clip: Windows) -> int:
    """Counts the captions whose samples all have their nearest window in the captioned clip."""
    return sum(
        all(nearest(sample, windows_by_clip)[0] == clip for sample in samples)
        for clip, samples in enumerate(samples_by_caption)
    )


def sample_psnr(samples_by_caption: Windows, windows_by_clip: Windows) -> float:
    """Returns the PSNR (dB) of samples to the nearest window of their clip: the mean over samples, then captions."""
    return _mean(
        np.mean([nearest(sample, [windows])[1] for sample in samples])
        for samples, windows in zip(samples_by_caption, windows_by_clip, strict=True)
    )


def mean_window_psnr(train_by_clip: Windows, windows_by_clip: Windows) -> float:
    """Returns the `sample_psnr` of a baseline without a model: the mean of a clip's training windows as its sample."""
    means = [(windows.mean(0, dtype=np.float64) / 127.5 - 1).astype(np.float32) for windows in train_by_clip]
    return _mean(nearest(mean, [windows])[1] for mean, windows in zip(means, windows_by_clip, strict=True))


def motion(videos: UInt8[np.ndarray, "n t h w c"]) -> float:
    """Returns the mean absolute difference of successive frames, in levels of 0 to 255."""
    return float(np.abs(np.diff(videos.astype(np.int16), axis=1)).mean())


def motion_ratio(samples_by_caption: Windows, windows_by_clip: Windows) -> float:
    """Returns the motion of the samples over that of the clips, each a mean over clips; nan if no clip moves."""
    moves = _mean(map(motion, windows_by_clip))
    return _mean(map(motion, samples_by_caption)) / moves if moves else float("nan")


def _mean(values) -> float:
    return float(np.mean(list(values)))
