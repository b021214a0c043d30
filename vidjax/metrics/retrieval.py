"""Do samples show the clip that their caption names? Judged in pixels, against windows that no stage trained on.

Numpy throughout. Videos are uint8; sample i of a list belongs to the caption of clip i of the other list.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from vidjax.metrics.reconstruction import psnr

Video = UInt8[np.ndarray, "t h w c"] | Float[np.ndarray, "t h w c"]
Windows = Sequence[UInt8[np.ndarray, "_ t h w c"]]  # one array a clip or caption


def nearest(sample: Video, windows_by_clip: Windows) -> tuple[int, float]:
    """The clip with the window nearest to the sample, and the PSNR (dB) to that window."""
    best = [float(psnr(windows, sample[None]).max()) for windows in windows_by_clip]
    clip = int(np.argmax(best))
    return clip, best[clip]


def retrieval(samples_by_caption: Windows, windows_by_clip: Windows) -> int:
    """For how many captions every sample has its nearest window in the captioned clip."""
    return sum(
        all(nearest(sample, windows_by_clip)[0] == clip for sample in samples)
        for clip, samples in enumerate(samples_by_caption)
    )


def sample_psnr(samples_by_caption: Windows, windows_by_clip: Windows) -> float:
    """PSNR (dB) of a sample to the nearest window of its own clip, a mean over samples, then over captions."""
    return _mean(
        np.mean([nearest(sample, [windows])[1] for sample in samples])
        for samples, windows in zip(samples_by_caption, windows_by_clip, strict=True)
    )


def mean_window_psnr(train_by_clip: Windows, windows_by_clip: Windows) -> float:
    """What no model at all scores in `sample_psnr`: the mean of a clip's training windows, offered as its sample."""
    means = [(windows.mean(0, dtype=np.float64) / 127.5 - 1).astype(np.float32) for windows in train_by_clip]
    return _mean(nearest(mean, [windows])[1] for mean, windows in zip(means, windows_by_clip, strict=True))


def motion(videos: UInt8[np.ndarray, "n t h w c"]) -> float:
    """Mean absolute difference of successive frames, in levels of 0 to 255."""
    return float(np.abs(np.diff(videos.astype(np.int16), axis=1)).mean())


def motion_ratio(samples_by_caption: Windows, windows_by_clip: Windows) -> float:
    """Motion of the samples over that of the clips, each a mean over clips; nan if no clip moves."""
    moves = _mean(map(motion, windows_by_clip))
    return _mean(map(motion, samples_by_caption)) / moves if moves else float("nan")


def _mean(values) -> float:
    return float(np.mean(list(values)))
