"""Metrics of a set of videos, most of them against a reference set: FVD, KVD, FID, Inception score and stand-ins."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vidjax.metrics.distances import Statistics, frechet, inception_score, kernel_distance

Key = tuple[str, bool]  # a network by its name in `feature_networks.KINDS`, and whether it is trained
Features = Float[np.ndarray, "_ m d"]  # m of each video; sets have different numbers of them


@dataclasses.dataclass(frozen=True)
class SetMetric:
    """A `score` of the features of the videos, and of the reference if it `compares`.

    network: a name in `feature_networks.KINDS`, with published weights if `trained`; `output`: which of its outputs.
    """

    unit: str
    network: str
    score: Callable[..., float]
    output: int = 0
    compares: bool = True
    trained: bool = True

    @property
    def key(self) -> Key:
        """The network, and whether it is trained."""
        return self.network, self.trained


def frechet_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the Frechet distance of two sets of features."""
    return frechet(Statistics.of(ours), Statistics.of(theirs))


# Stand-ins compare sets with each other by the same data and protocol only: none of them is an FVD or FID.
# frechet_efficientnet sees frames, in no order; _motion sees how they change, noise as well, not which way in time.
# frechet_random_i3d needs no weights at all: it sees blur, little noise and no order.
SETS = {
    "fvd": SetMetric("Frechet distance of I3D logits", "i3d", frechet_distance),
    "kvd": SetMetric("kernel distance (MMD^2) of I3D logits", "i3d", kernel_distance),
    "fid": SetMetric("Frechet distance of Inception features of frames", "inception", frechet_distance),
    "is": SetMetric("Inception score of frames", "inception", inception_score, output=1, compares=False),
    "frechet_efficientnet": SetMetric(
        "Frechet distance of EfficientNet features of frames, only relative", "efficientnet", frechet_distance
    ),
    "frechet_efficientnet_motion": SetMetric(
        "Frechet distance of steps of EfficientNet features from frame to frame, only relative",
        "efficientnet",
        frechet_distance,
        output=1,
    ),
    "frechet_random_i3d": SetMetric(
        "Frechet distance of random I3D's features, only relative", "i3d", frechet_distance, trained=False
    ),
}


def figure(metric: SetMetric, sets: Sequence[Features], subsets: int, size: int | None) -> dict[str, Any]:
    """Returns the value over all videos, and mean and deviation over `subsets` random halves, or subsets of `size`
    videos.

    `sets`: the videos and, if the metric compares, the reference; both are drawn from. Distances shrink as sets grow:
    the mean of subsets is of their size, not of the whole. Where a subset would have one video there are none. Raises
    InputError where a set is too small for the value itself.
    """
    flat = lambda features: features.reshape(-1, features.shape[-1])
    value = metric.score(*map(flat, sets))
    least = min(map(len, sets))
    size = min(size or least // 2, least)
    if size < 2 or subsets < 2:
        return {"value": value}
    rng = np.random.default_rng(0)
    draw = lambda features: flat(features[rng.choice(len(features), size, replace=False)])
    scores = [metric.score(*map(draw, sets)) for _ in range(subsets)]
    spread = {"count": subsets, "videos": size, "mean": float(np.mean(scores)), "std": float(np.std(scores, ddof=1))}
    return {"value": value, "subsets": spread}
