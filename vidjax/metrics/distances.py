"""Distances between two sets of features, Frechet and kernel, and the Inception score of one set, in float64."""

import dataclasses
from functools import reduce

import numpy as np
from jaxtyping import Float

from vidjax.errors import InputError

ROWS = 4096  # features that are converted to float64 at a time

Features = Float[np.ndarray, "_ d"]


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Count, mean and deviations of features; `merge` combines those of parts without loss.

    `factor` is a matrix F, at most d x d, with F^T F the sum of squared deviations. It is kept in place of that sum:
    squaring would halve the digits of small variances, and with fewer samples than dimensions most are zero.
    """

    count: int
    mean: Float[np.ndarray, " d"]
    factor: Float[np.ndarray, "r d"]

    @classmethod
    def of(cls, features: Features) -> "Statistics":
        """Computes the statistics of features. Raises InputError if there are none, or some are not finite."""
        if not len(features):
            raise InputError("there are no features: give at least two videos, for motion of two frames")
        return reduce(Statistics.merge, (cls._part(features[i : i + ROWS]) for i in range(0, len(features), ROWS)))

    @classmethod
    def _part(cls, features: Features) -> "Statistics":
        features = np.asarray(features, np.float64)
        if not np.isfinite(features).all():
            raise InputError("some features are not finite: the weights or the frames are broken")
        mean = features.mean(0)
        return cls(len(features), mean, _short(features - mean))

    def merge(self, other: "Statistics") -> "Statistics":
        """Returns the statistics of both sets together (Chan et al. 1979)."""
        count, apart = self.count + other.count, other.mean - self.mean
        between = np.sqrt(self.count * other.count / count) * apart
        mean = self.mean + apart * (other.count / count)
        return Statistics(count, mean, _short(np.concatenate([self.factor, other.factor, between[None]])))

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """The unbiased estimate, divided by count - 1. Raises InputError for a single sample."""
        return self.root.T @ self.root

    @property
    def root(self) -> Float[np.ndarray, "r d"]:
        """R with R^T R the covariance. Raises InputError for a single sample."""
        if self.count < 2:
            raise InputError("one sample has no covariance: give at least two videos")
        return self.factor / np.sqrt(self.count - 1)


def _short(rows: np.ndarray) -> np.ndarray:
    """Returns a factor of the same F^T F with no more rows than columns."""
    return np.asarray(np.linalg.qr(rows, mode="r")) if rows.shape[0] > rows.shape[1] else rows


def frechet(a: Statistics, b: Statistics) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), the squared 2-Wasserstein distance of Gaussians (Dowson & Landau
    1982; as FID: Heusel et al. 2017, as FVD: Unterthiner et al. 2018).

    With S = R^T R the last trace is the sum of the singular values of R1 R2^T: exact with fewer samples than dimensions
    too, where the square root of the singular product S1 S2 turns rounding into error. Raises InputError for a single
    sample.
    """
    ours, theirs = a.root, b.root
    cross = np.linalg.svd(ours @ theirs.T, compute_uv=False).sum()
    distance = np.square(a.mean - b.mean).sum() + np.square(ours).sum() + np.square(theirs).sum() - 2 * cross
    return max(float(distance), 0.0)  # equal sets differ by rounding only


def kernel_distance(a: Features, b: Features) -> float:
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3: KID (Binkowski et al. 2018, section 4), of videos KVD.

    It may be a little below 0 for sets that are alike. Raises InputError for a single sample.
    """
    if min(len(a), len(b)) < 2:
        raise InputError("the kernel distance compares pairs within a set: give at least two videos")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    pairs = lambda x: x * (x - 1)
    within = (_kernel_sum(a, a) - _kernel_diagonal(a)) / pairs(len(a))
    within += (_kernel_sum(b, b) - _kernel_diagonal(b)) / pairs(len(b))
    return float(within - 2 * _kernel_sum(a, b) / (len(a) * len(b)))


def _kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
    blocks = (a[i : i + ROWS] @ b.T / a.shape[1] + 1 for i in range(0, len(a), ROWS))
    return float(sum((block**3).sum() for block in blocks))


def _kernel_diagonal(a: np.ndarray) -> float:
    return float(((np.square(a).sum(1) / a.shape[1] + 1) ** 3).sum())


def inception_score(logits: Float[np.ndarray, "_ k"]) -> float:
    """exp of the mean KL divergence of p(y|x) from its mean p(y) (Salimans et al. 2016): 1 to the number of classes."""
    from scipy.special import log_softmax, logsumexp

    logs = log_softmax(np.asarray(logits, np.float64), axis=1)
    overall = logsumexp(logs, axis=0) - np.log(len(logs))
    return float(np.exp((np.exp(logs) * (logs - overall)).sum(1).mean()))
