"""Clusterings and their agreement with labels, against the papers' formulas written out."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from concerto_tf.metrics import agreement
from concerto_tf.metrics.clustering import kmeans_partitions


def entropy(codes: np.ndarray) -> float:
    p = np.unique(codes, return_counts=True)[1] / len(codes)
    return float(-(p * np.log(p)).sum())


def ari(labels: np.ndarray, clusters: np.ndarray) -> float:
    """CLEAR, equations 4 and 5: over all pairs of cells, corrected for chance."""
    pairs = list(combinations(range(len(labels)), 2))
    same = np.array([labels[i] == labels[j] for i, j in pairs])
    together = np.array([clusters[i] == clusters[j] for i, j in pairs])
    expected = same.sum() * together.sum() / len(pairs)
    most = (same.sum() + together.sum()) / 2
    return float(((same & together).sum() - expected) / (most - expected))


def test_agreement_is_as_printed() -> None:
    rng = np.random.default_rng(0)
    labels, clusters = rng.integers(3, size=60), rng.integers(5, size=60)
    clusters[:40] = labels[:40]
    shared = entropy(labels) + entropy(clusters) - entropy(labels * 10 + clusters)
    scores = agreement(labels, clusters)
    assert scores["ari"] == pytest.approx(ari(labels, clusters))
    assert scores["nmi"] == pytest.approx(2 * shared / (entropy(labels) + entropy(clusters)))
    assert scores["nmi_max"] == pytest.approx(shared / max(entropy(labels), entropy(clusters)))
    assert scores["nmi_max"] < scores["nmi"]


def test_seeds_give_clusterings_of_their_own() -> None:
    z = np.random.default_rng(2).normal(size=(80, 3))
    first, *rest = kmeans_partitions(z, 6, seed=0)
    assert any((first != other).any() for other in rest)
    np.testing.assert_array_equal(first, kmeans_partitions(z, 6, seed=0)[0])
