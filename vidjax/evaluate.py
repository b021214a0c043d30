"""How good a folder of videos is: `python -m vidjax.evaluate --videos DIR --metrics flow_smoothness --json FILE`.

Every figure is written with its protocol: how many videos, of how many frames, of which size, with which weights.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from vidjax import cli, settings
from vidjax.data.source import Item
from vidjax.data.transforms import cover_size, crop_at
from vidjax.data.video_io import BrokenClip, Video
from vidjax.errors import InputError
from vidjax.metrics import flow, reconstruction

VIDEOS = flags.DEFINE_string(
    "videos", None, "A folder of videos; captions in NAME.txt beside NAME.mp4 or in its captions.json."
)
METRICS_FLAG = flags.DEFINE_list("metrics", [], "Which figures, separated by commas; --metrics= lists them.")
CLIP = flags.DEFINE_string("clip", None, "A folder with a CLIP model, for frame_consistency and text_alignment.")
SOURCE = flags.DEFINE_string("source", None, "The video that these are edits of, for psnr and ssim.")
FRAMES = flags.DEFINE_integer("frames", None, "Only the first so many frames; default: all.", lower_bound=1)
HEIGHT = flags.DEFINE_integer("height", None, "Scale and cut the videos to this height...", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", None, "... and this width in pixels; default: as they are.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "Write the figures to this file.")


@dataclasses.dataclass
class Judged:
    """One video while it is judged; what several metrics need is computed once."""

    name: str
    prompt: str
    frames: np.ndarray
    scorer: Any

    @functools.cached_property
    def flow(self) -> np.ndarray:
        return flow.flow(self.frames)

    @functools.cached_property
    def embeddings(self) -> np.ndarray:
        return self.scorer.embed_frames(self.frames)

    @property
    def source(self) -> np.ndarray:
        return source_frames(SOURCE.value, *self.frames.shape[:3])


@dataclasses.dataclass(frozen=True)
class Metric:
    """`each(video)` is what a video gives; the figure is `total` of the list of these, their mean unless told.

    `needs` is the flag without which it cannot be had.
    """

    unit: str
    each: Callable[[Judged], Any]
    total: Callable[[list], float] = lambda values: float(np.mean(values))
    needs: str = ""


def consistency(video: Judged) -> float:
    from vidjax.metrics.clip_scores import frame_consistency

    return frame_consistency(video.embeddings)


def alignment(video: Judged) -> float:
    from vidjax.metrics.clip_scores import text_alignment

    if not video.prompt:
        raise InputError("it has no caption for text_alignment: write one to NAME.txt beside it or to captions.json")
    return text_alignment(video.embeddings, video.scorer.embed_text(video.prompt))


METRICS = {
    "frame_consistency": Metric("cosine of successive frames' CLIP embeddings x 100", consistency, needs="clip"),
    "text_alignment": Metric("cosine of frames' and caption's CLIP embeddings x 100", alignment, needs="clip"),
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


def main() -> None:
    chosen = asked()
    items, scorer = videos(), None
    if any(metric.needs == "clip" for metric in chosen.values()):
        from vidjax.metrics.clip_scores import ClipScorer

        scorer = ClipScorer(CLIP.value)
    read, unreadable, parts = judge(items, chosen, scorer)
    figures = {
        name: {"value": metric.total(parts[name]), "unit": metric.unit, **protocol(metric, read, scorer)}
        | ({"each": dict(zip(read, parts[name]))} if isinstance(parts[name][0], float) else {})
        for name, metric in chosen.items()
    }
    print_table(figures)
    if JSON.value:
        Path(JSON.value).parent.mkdir(parents=True, exist_ok=True)
        settings.write_json(JSON.value, finite({"folder": VIDEOS.value, "metrics": figures, "unreadable": unreadable}))


def asked() -> dict[str, Metric]:
    """The metrics of the command line, all that they need being there. Raises InputError."""
    if not METRICS_FLAG.value:
        raise InputError(f"--metrics is empty; name some of {', '.join(METRICS)}")
    chosen = {name: settings.choose(name, METRICS, "metric") for name in METRICS_FLAG.value}
    for name, metric in chosen.items():
        what = {"clip": "a folder with a CLIP model", "source": "the video that these are edits of"}
        if metric.needs and not flags.FLAGS[metric.needs].value:
            raise InputError(f"{name} needs --{metric.needs}={metric.needs.upper()}, {what[metric.needs]}")
    if (HEIGHT.value is None) != (WIDTH.value is None):
        raise InputError("--height and --width go together: give both or neither")
    return chosen


def videos() -> Sequence[Item]:
    """What --videos has. Raises InputError."""
    from vidjax.data.sources import folder

    if not VIDEOS.value:
        raise InputError("--videos is missing: name a folder with videos")
    if not Path(VIDEOS.value).is_dir():
        raise InputError(f"--videos={VIDEOS.value} is no folder; name one with videos")
    source = folder(VIDEOS.value)
    return [source[i] for i in range(len(source))]


def judge(items: Sequence[Item], chosen: dict[str, Metric], scorer: Any) -> tuple[dict, dict, dict]:
    """(shape of each video that could be read, the reasons for the others, what each video gives to each metric)."""
    from tqdm import tqdm

    read, unreadable, parts = {}, {}, {name: [] for name in chosen}
    for item in tqdm(items, desc="judging", unit="video", disable=None):
        name = Path(item.name).relative_to(VIDEOS.value).as_posix()
        try:
            with item.open() as video:
                frames = decoded(video, FRAMES.value or video.frames)
        except BrokenClip as error:
            unreadable[name] = str(error)
            print(f"warning: {name} is left out: {error}", file=sys.stderr)
            continue
        judged = Judged(name, item.text, frames, scorer)
        read[name] = frames.shape[:3]
        for metric in chosen:
            try:
                parts[metric].append(chosen[metric].each(judged))
            except InputError as error:
                raise InputError(f"{name}: {error}") from None
    if not read:
        raise InputError(f"none of the {len(items)} videos in {VIDEOS.value} can be read")
    return read, unreadable, parts


def decoded(video: Video, frames: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """The first frames, scaled to cover `size` (default: the flags', else the video's own) and cut to it."""
    if size is None:
        size = (HEIGHT.value or video.height, WIDTH.value or video.width)
    shown = video.read(range(min(frames, video.frames)), cover_size(video.height, video.width, size))
    return crop_at(shown, size, (0.5, 0.5))


@functools.lru_cache(1)
def source_frames(path: str, frames: int, height: int, width: int) -> np.ndarray:
    """As many frames of the source, from its beginning, in the size of the video that they are compared to."""
    try:
        with Video(path) as video:
            if video.frames < frames:
                raise InputError(f"it has {frames} frames, --source={path} has {video.frames}: set --frames")
            return decoded(video, frames, (height, width))
    except BrokenClip as error:
        raise InputError(f"--source={path}: {error}") from None


def protocol(metric: Metric, read: dict[str, tuple], scorer: Any) -> dict[str, Any]:
    """What a figure depends on beside the videos themselves; `frames` is [least, most]."""
    counts, sizes = [t for t, *_ in read.values()], sorted({f"{h}x{w}" for _, h, w in read.values()})
    made = {"videos": len(read), "frames": [min(counts), max(counts)], "sizes": sizes}
    if metric.needs == "clip":
        made["weights"] = scorer.name
    elif metric.needs == "source":
        made["source"] = SOURCE.value
    return made


def print_table(figures: dict[str, dict]) -> None:
    for name, figure in figures.items():
        frames = " to ".join(map(str, sorted(set(figure["frames"]))))
        of = f"{figure['videos']} videos of {frames} frames, {' '.join(figure['sizes'])}"
        more = "".join(f", {key} {figure[key]}" for key in ("weights", "source") if key in figure)
        print(f"{name:<18} {figure['value']:>9.3f} {figure['unit']} ({of}{more})")


def finite(value: Any) -> Any:
    """The same without infinities (the PSNR of equal videos), which JSON has no word for: null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    cli.start(main)
