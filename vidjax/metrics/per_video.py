"""Metrics of single videos; a set's value is their mean unless the metric defines `total`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from vidjax.data.combinations import PROPERTIES
from vidjax.errors import InputError
from vidjax.metrics import drawn, flow, reconstruction


@dataclasses.dataclass
class Judged:
    """One video while it is evaluated; what several metrics need is computed once."""

    name: str
    prompt: str
    frames: np.ndarray
    scorer: Any
    find_source: Callable[["Judged"], np.ndarray]

    @functools.cached_property
    def flow(self) -> np.ndarray:
        """Optical flow, see `flow.flow`."""
        return flow.flow(self.frames)

    @functools.cached_property
    def drawn(self) -> dict[str, bool]:
        """Which properties of its caption a drawn clip shows, see `drawn.agreement`."""
        return drawn.agreement(self.frames, self.prompt)

    @functools.cached_property
    def embeddings(self) -> np.ndarray:
        """CLIP embeddings of the frames, [t, d]."""
        return self.scorer.embed_frames(self.frames)

    @functools.cached_property
    def source(self) -> np.ndarray:
        """The frames that this video is compared with."""
        return self.find_source(self)


@dataclasses.dataclass(frozen=True)
class Metric:
    """`each(video)` is the value of a video, `total` maps the list of them to that of the set; `needs` is the flag that
    it requires."""

    unit: str
    each: Callable[[Judged], Any]
    total: Callable[[list], float] = lambda values: float(np.mean(values))
    needs: str = ""


def consistency(video: Judged) -> float:
    """Returns the frame consistency of a video."""
    from vidjax.metrics.clip_scores import frame_consistency

    return frame_consistency(video.embeddings)


def alignment(video: Judged) -> float:
    """Returns the text alignment of a video. Raises InputError if it has no caption."""
    from vidjax.metrics.clip_scores import text_alignment

    if not video.prompt:
        raise InputError("it has no caption to compare with: write one to NAME.txt beside it or to captions.json")
    return text_alignment(video.embeddings, video.scorer.embed_text(video.prompt))


METRICS = {
    **{
        f"drawn_{name}": Metric(f"share that show the {name} of the caption", lambda v, name=name: float(v.drawn[name]))
        for name in PROPERTIES
    },
    "drawn_all": Metric("share that show all of the caption", lambda video: float(all(video.drawn.values()))),
    "frame_consistency": Metric("cosine of successive frames' CLIP embeddings x 100", consistency, needs="clip"),
    "text_alignment": Metric("cosine of frames' and caption's CLIP embeddings x 100", alignment, needs="clip"),
    "clipsim": Metric("cosine of frames' and caption's CLIP embeddings", lambda v: alignment(v) / 100, needs="clip"),
    "motion_magnitude": Metric("pixels a frame", lambda video: flow.motion_magnitude(video.flow)),
    "flow_smoothness": Metric("pixels, second difference of flow", lambda video: flow.flow_smoothness(video.flow)),
    "motion_diversity": Metric(
        "pixels a frame, between two videos' mean flows",
        lambda video: flow.mean_flow(video.flow),
        flow.motion_diversity,
    ),
    "psnr": Metric(
        "dB to the source", lambda v: float(reconstruction.psnr(v.frames[None], v.source)[0]), needs="source"
    ),
    "ssim": Metric("to the source", lambda v: float(reconstruction.ssim(v.frames[None], v.source)[0]), needs="source"),
}
