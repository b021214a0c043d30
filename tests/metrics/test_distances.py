"""Distances of sets of features: against scipy's matrix square root, a plain double loop, and closed forms."""

from functools import reduce

import numpy as np
import pytest
import scipy.linalg

from vidjax.errors import InputError
from vidjax.metrics.distances import Statistics, frechet, inception_score, kernel_distance


def features(n, d, seed, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) * scale + shift).astype(np.float32)


def distance(a, b):
    return frechet(Statistics.of(a), Statistics.of(b))


def by_square_root(a, b):
    """Heusel et al. 2017, equation 6, with scipy's square root of the product of covariances, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second - 2 * root)


def by_eigenvalues(a, b):
    """The same with fewer samples than dimensions, where `sqrtm` fails: S2's factor between two exact roots of S1."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = scipy.linalg.eigh(first)
    keep = values > 1e-12 * values.max()
    root = vectors[:, keep] * np.sqrt(values[keep])
    inner = scipy.linalg.eigvalsh(root.T @ second @ root)
    inner = inner[inner > 1e-12 * inner.max()]
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second) - 2 * np.sqrt(inner).sum()


@pytest.mark.parametrize("n, m", [(300, 200), (41, 500)])
def test_frechet_is_that_of_the_matrix_square_root(n, m):
    a, b = features(n, 40, 0), features(m, 40, 1, 1.3, 0.4)
    np.testing.assert_allclose(distance(a, b), by_square_root(a, b), rtol=1e-7)


@pytest.mark.parametrize("n, m, d", [(9, 12, 40), (9, 200, 40), (60, 50, 400)])
def test_frechet_with_fewer_samples_than_dimensions(n, m, d):
    a, b = features(n, d, 0), features(m, d, 1, 1.3, 0.4)
    np.testing.assert_allclose(distance(a, b), by_eigenvalues(a, b), rtol=1e-9)


def test_frechet_of_two_samples_each_by_hand():
    """Each covariance has one direction: the trace of the root is the product of lengths and the cosine."""
    a = np.array([[1.0, 0, 0], [-1, 0, 0]])
    b = np.array([[0.6, 0.8, 0], [-0.6, -0.8, 0]]) * 3 + [0, 0, 2]
    np.testing.assert_allclose(distance(a, b), 4 + 2 + 18 - 2 * np.sqrt(2 * 18) * 0.6, rtol=1e-12)


@pytest.mark.parametrize("n", [7, 200])
def test_frechet_identities(n):
    a, b = features(n, 30, 0), features(n + 3, 30, 1, shift=1.0)
    assert distance(a, a) <= 1e-12 * np.square(a).sum()
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-12)
    assert distance(a.astype(np.float64), a + np.float64(2)) == pytest.approx(30 * 4, rel=1e-9)
    turn = scipy.stats.ortho_group.rvs(30, random_state=0)
    assert distance(a @ turn, b @ turn) == pytest.approx(distance(a, b), rel=1e-6)


def test_frechet_of_diagonal_gaussians():
    """|m|^2 + sum (s1 - s2)^2, where the samples have exactly these moments."""
    s1, s2, shift = np.array([1.0, 2.0, 0.1]), np.array([3.0, 0.0, 1e-6]), np.array([1.0, -1, 0.5])
    axes = np.concatenate([np.eye(3), -np.eye(3)]) * np.sqrt(5 / 2)
    expected = np.square(shift).sum() + np.square(s1 - s2).sum()
    np.testing.assert_allclose(distance(axes * s1, axes * s2 + shift), expected, rtol=1e-12)


@pytest.mark.parametrize("cuts", [(1, 2, 50), (30,), (99,)])
def test_merged_parts_are_the_whole(cuts):
    a = features(100, 24, 0, shift=5.0).astype(np.float64)
    parts = reduce(Statistics.merge, map(Statistics.of, np.split(a, cuts)))
    assert parts.count == 100 and parts.factor.shape == (24, 24)
    np.testing.assert_allclose(parts.mean, a.mean(0), rtol=1e-12)
    np.testing.assert_allclose(parts.covariance, np.cov(a, rowvar=False), rtol=1e-9, atol=1e-9)


def test_many_features_are_taken_part_by_part(monkeypatch):
    a, b = features(100, 8, 0), features(90, 8, 1)
    whole = distance(a, b), kernel_distance(a, b)
    monkeypatch.setattr("vidjax.metrics.distances.ROWS", 7)
    np.testing.assert_allclose((distance(a, b), kernel_distance(a, b)), whole, rtol=1e-9)


def test_kernel_distance_is_the_double_loop():
    a, b = features(12, 5, 0).astype(np.float64), features(9, 5, 1, shift=0.5).astype(np.float64)
    kernel = lambda x, y: (sum(p * q for p, q in zip(x, y)) / 5 + 1) ** 3
    within = lambda s: np.mean([kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j])
    expected = within(a) + within(b) - 2 * np.mean([kernel(x, y) for x in a for y in b])
    np.testing.assert_allclose(kernel_distance(a, b), expected, rtol=1e-10)


def test_kernel_distance_is_unbiased():
    """Over many draws from one distribution it is zero on average, which the biased one is not."""
    rng = np.random.default_rng(0)
    draws = [kernel_distance(rng.standard_normal((6, 4)), rng.standard_normal((5, 4))) for _ in range(4000)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / np.sqrt(len(draws))


def test_inception_score_in_the_limits():
    certain = np.eye(10).repeat(3, 0) * 100
    assert inception_score(certain) == pytest.approx(10, rel=1e-9)
    assert inception_score(np.tile(np.arange(10.0), (7, 1))) == pytest.approx(1, rel=1e-12)
    assert inception_score(certain[:6]) == pytest.approx(2, rel=1e-9)


def test_what_has_no_covariance_is_refused():
    one, many = features(1, 4, 0), features(8, 4, 0)
    with pytest.raises(InputError, match="at least two"):
        distance(one, many)
    with pytest.raises(InputError, match="at least two"):
        kernel_distance(many, one)
    with pytest.raises(InputError, match="no features"):
        Statistics.of(many[:0])
    with pytest.raises(InputError, match="not finite"):
        Statistics.of(many * np.inf)
