"""How good videos are: `python -m vidjax.evaluate --videos DIR --reference DIR --metrics fvd --i3d FILE --json FILE`.

Every figure is written with its protocol: how many videos, of how many frames, of which size, with which weights.
Distances named frechet_* do with what pip installs: they compare sets by one protocol, and are no FVD or FID.
"""

import dataclasses
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from vidjax import cli, settings
from vidjax.data.source import Item
from vidjax.errors import InputError
from vidjax.evaluation import videos as judged
from vidjax.metrics import per_video
from vidjax.metrics.per_set import SETS, Key, SetMetric, figure
from vidjax.recipes.run import Run
from vidjax.runtime.outputs import open_file
from vidjax.runtime.storage import parse_path, write_json
from vidjax.weights import efficientnet

if TYPE_CHECKING:
    from vidjax.metrics.feature_networks import FeatureNetwork

VIDEOS = flags.DEFINE_string(
    "videos", None, "A folder of videos; captions in NAME.txt beside NAME.mp4 or in its captions.json."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Or a run of vidjax.main, whose model makes the videos.")
COUNT = flags.DEFINE_integer("count", 64, "How many videos the model of --workdir makes.", lower_bound=1)
REFERENCE = flags.DEFINE_string(
    "reference",
    None,
    "A folder of real videos for distances of sets; for psnr and ssim the videos of the same names. Default with "
    "--workdir: training windows of its data.",
)
METRICS = flags.DEFINE_list("metrics", [], "Which figures, separated by commas; --metrics= lists them.")
CLIP = flags.DEFINE_string("clip", None, "A folder with a CLIP model, for figures of texts and frame_consistency.")
I3D = flags.DEFINE_string("i3d", None, "Published weights of I3D as safetensors, for fvd and kvd.")
INCEPTION = flags.DEFINE_string("inception", None, "Published weights of InceptionV3 as safetensors, for fid and is.")
EFFICIENTNET = flags.DEFINE_string(
    "efficientnet",
    efficientnet.installed(),
    "Weights of EfficientNet-Lite0, for frechet_efficientnet and frechet_efficientnet_motion: a safetensors file, or "
    f"that of {efficientnet.INSTALL}; default: the latter, if it is installed.",
)
SOURCE = flags.DEFINE_string("source", None, "The video that these are edits of, for psnr and ssim.")
BATCH = flags.DEFINE_integer("batch", 4, "Videos at a time in networks and samplers, over all devices.", lower_bound=1)
SUBSETS = flags.DEFINE_integer("subsets", 10, "Random subsets for mean and deviation; 0: none.", lower_bound=0)
SUBSET_SIZE = flags.DEFINE_integer("subset_size", None, "Videos of a subset; default: half of them.", lower_bound=2)
FRAMES = flags.DEFINE_integer("frames", None, "Only the first so many frames; default: all.", lower_bound=1)
HEIGHT = flags.DEFINE_integer("height", None, "Scale and cut the videos to this height...", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", None, "... and this width in pixels; default: as they are.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "Write the figures to this file.")
join_cluster = cli.define_cluster_flags()

ALL: dict[str, per_video.Metric | SetMetric] = {**per_video.METRICS, **SETS}
STAND_IN = f"without them there is frechet_efficientnet, which is only relative, after {efficientnet.INSTALL}"
NEEDS = {
    "clip": "a folder with a CLIP model",
    "source": "the video that these are edits of, or --reference, a folder with videos of the same names",
    "reference": "a folder of real videos",
    "i3d": f"pytorch-i3d's weights as safetensors; {STAND_IN}",
    "inception": f"pytorch-fid's weights as safetensors; {STAND_IN}",
    "efficientnet": f"or {efficientnet.INSTALL}",
}


@dataclasses.dataclass(frozen=True)
class Read:
    """What reading a set of videos gave: their shapes, why others are left out, their part of every figure, and their
    features by network."""

    folder: str
    shapes: dict[str, tuple[int, int, int]]
    unreadable: dict[str, str]
    parts: dict[str, list]
    features: dict[Key, tuple[np.ndarray, ...]]

    def protocol(self) -> dict[str, Any]:
        """Returns how many videos there are, of how many frames ([least, most]) and which sizes."""
        counts = [t for t, *_ in self.shapes.values()]
        sizes = sorted({f"{h}x{w}" for _, h, w in self.shapes.values()})
        return {"videos": len(self.shapes), "frames": [min(counts), max(counts)], "sizes": sizes}


def main() -> None:
    """Joins the other processes if there are any, and runs."""
    with join_cluster():
        run()


def run() -> None:
    """Samples the videos of --workdir on all processes, and evaluates them on the first one."""
    from vidjax.runtime.processes import lead, on_first_process

    chosen = asked()
    file = on_first_process(lambda: JSON.value and os.fspath(open_file(JSON.value, "--json", disk=True)))
    items, reference = videos(chosen)
    if not lead():
        for _ in items if WORKDIR.value else ():
            pass
        return
    by_itself = {name: metric for name, metric in chosen.items() if isinstance(metric, per_video.Metric)}
    of_sets = {name: metric for name, metric in chosen.items() if isinstance(metric, SetMetric)}
    networks, scorer = make_networks(of_sets), None
    if any(metric.needs == "clip" for metric in by_itself.values()):
        from vidjax.metrics.clip_scores import ClipScorer

        scorer = ClipScorer(CLIP.value)
    ours = judge(items, VIDEOS.value or WORKDIR.value, by_itself, scorer, networks, FRAMES.value)
    theirs = None
    if reference is not None:
        compared = {metric.key: networks[metric.key] for metric in of_sets.values() if metric.compares}
        frames = next(iter(ours.shapes.values()))[0]
        theirs = judge(reference, REFERENCE.value or f"training windows of {WORKDIR.value}", {}, None, compared, frames)
    figures = {}
    for name, metric in chosen.items():
        if isinstance(metric, SetMetric):
            figures[name] = of_set(metric, networks[metric.key], ours, theirs if metric.compares else None)
        else:
            figures[name] = of_each(metric, ours, ours.parts[name], scorer)
    print_table(figures)
    if file:
        path = Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        unreadable = ours.unreadable | ({f"reference {k}": v for k, v in theirs.unreadable.items()} if theirs else {})
        write_json(path, finite({"folder": ours.folder, "metrics": figures, "unreadable": unreadable}))


def asked() -> dict[str, per_video.Metric | SetMetric]:
    """Returns the metrics of the command line. Raises InputError for what they need and is not there."""
    if not METRICS.value:
        raise InputError(f"--metrics is empty; name some of {', '.join(ALL)}")
    if bool(VIDEOS.value) == bool(WORKDIR.value):
        raise InputError("name either a folder with videos, --videos, or a run whose model makes them, --workdir")
    chosen = {name: settings.choose(name, ALL, "metric") for name in METRICS.value}
    for name, metric in chosen.items():
        needs = metric.needs if isinstance(metric, per_video.Metric) else metric.network * metric.trained
        if needs and not flags.FLAGS[needs].value and not (needs == "source" and VIDEOS.value and REFERENCE.value):
            raise InputError(f"{name} needs --{needs}={needs.upper()}, {NEEDS[needs]}")
        if isinstance(metric, SetMetric) and metric.compares and not (REFERENCE.value or WORKDIR.value):
            raise InputError(f"{name} needs --reference=DIR, {NEEDS['reference']}")
    if (HEIGHT.value is None) != (WIDTH.value is None):
        raise InputError("--height and --width go together: give both or neither")
    return chosen


def videos(chosen: dict[str, Any]) -> tuple[Iterable[Item], Iterable[Item] | None]:
    """Opens the videos to evaluate, and those that sets are compared to, if any are. Raises InputError."""
    compares = any(isinstance(metric, SetMetric) and metric.compares for metric in chosen.values())
    reference = judged.in_folder(REFERENCE.value, "reference") if REFERENCE.value else None
    if WORKDIR.value:
        of = Run(parse_path(WORKDIR.value))
        if compares and reference is None:
            reference = judged.windows(of, COUNT.value)
        return judged.generated(of, COUNT.value, BATCH.value), reference if compares else None
    return judged.in_folder(VIDEOS.value, "videos"), reference if compares else None


def make_networks(chosen: dict[str, SetMetric]) -> dict[Key, "FeatureNetwork"]:
    """Loads the networks that the metrics need, each once."""
    if not chosen:
        return {}
    from vidjax.metrics.feature_networks import FeatureNetwork

    return {
        (kind, trained): FeatureNetwork(kind, flags.FLAGS[kind].value if trained else None, BATCH.value)
        for kind, trained in {metric.key for metric in chosen.values()}
    }


def judge(
    items: Iterable[Item],
    folder: str,
    chosen: dict[str, per_video.Metric],
    scorer: Any,
    networks: dict[Key, "FeatureNetwork"],
    frames: int | None,
) -> Read:
    """Measures every video that can be read, one at a time. Raises InputError, which names the video."""
    streams = {}
    if networks:
        from vidjax.metrics.feature_networks import Stream

        streams = {key: Stream(network, frames) for key, network in networks.items()}
    shapes, unreadable, parts = {}, {}, {name: [] for name in chosen}
    size = (HEIGHT.value, WIDTH.value) if HEIGHT.value else None
    for item, shown in judged.readable(items, frames, size, unreadable):
        video = per_video.Judged(item.name, item.text, shown, scorer, source_of)
        shapes[item.name] = shown.shape[:3]
        try:
            for name, metric in chosen.items():
                parts[name].append(metric.each(video))
            for stream in streams.values():
                stream.add(shown)
        except InputError as error:
            raise InputError(f"{item.name}: {error}") from None
    if not shapes:
        raise InputError(f"none of the {len(unreadable)} videos in {folder} can be read")
    return Read(folder, shapes, unreadable, parts, {key: stream.features() for key, stream in streams.items()})


def source_of(video: per_video.Judged) -> np.ndarray:
    """Reads what psnr and ssim compare a video to: as many frames of --source, or of its namesake in --reference."""
    flag, path = ("source", SOURCE.value) if SOURCE.value else ("reference", str(Path(REFERENCE.value) / video.name))
    return judged.source_frames(flag, path, *video.frames.shape[:3])


def of_each(metric: per_video.Metric, ours: Read, parts: list, scorer: Any) -> dict[str, Any]:
    """Computes a metric of single videos, with what it depends on beside the videos."""
    made = {"value": metric.total(parts), "unit": metric.unit, **ours.protocol()}
    if metric.needs == "clip":
        made["weights"] = scorer.name
    elif metric.needs == "source":
        made["source"] = SOURCE.value or REFERENCE.value
    return made | ({"each": dict(zip(ours.shapes, parts))} if isinstance(parts[0], float) else {})


def of_set(metric: SetMetric, network: "FeatureNetwork", ours: Read, theirs: Read | None) -> dict[str, Any]:
    """Computes a metric of the whole set, with what it depends on beside the videos."""
    sets = [read.features[metric.key][metric.output] for read in (ours, theirs) if read]
    made = {**figure(metric, sets, SUBSETS.value, SUBSET_SIZE.value), "unit": metric.unit, **ours.protocol()}
    reference = {"reference": {"folder": theirs.folder, **theirs.protocol()}} if theirs else {}
    return made | reference | {"features": network.kind.protocol, **network.weights}


def print_table(figures: dict[str, dict]) -> None:
    """Prints the figures with their protocol."""

    def counted(of: dict) -> str:
        frames = " to ".join(map(str, sorted(set(of["frames"]))))
        return f"{of['videos']} videos of {frames} frames, {' '.join(of['sizes'])}"

    width = max(18, *map(len, figures))
    for name, made in figures.items():
        value = f"{made['value']:.3{'g' if 0 < abs(made['value']) < 0.1 else 'f'}}"
        more = "".join(f", {key} {made[key]}" for key in ("weights", "source") if key in made)
        print(f"{name:<{width}} {value:>9} {made['unit']} ({counted(made)}{more})")
        lines = [f"against {counted(made['reference'])}: {made['reference']['folder']}"] if "reference" in made else []
        lines += [f"{key}: {made[key]}" for key in ("features", "sha256") if key in made]
        if drawn := made.get("subsets"):
            spread = f"{drawn['mean']:.4g} ± {drawn['std']:.2g}"
            lines.append(f"{spread} over {drawn['count']} subsets of {drawn['videos']} videos")
        for line in lines:
            print(f"{'':<{width + 10}} {line}")


def finite(value: Any) -> Any:
    """Replaces infinities (the PSNR of equal videos), which JSON has no word for, by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    cli.start(main)
