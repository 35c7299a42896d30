"""How far sources are off, and values without that."""

from __future__ import annotations

import numpy as np
import pytest

from concerto_tf.numerics.alignment import (
    Comparison,
    align,
    clustered_offsets,
    matched_offsets,
    modality_offsets,
    source_offsets,
)

BY = Comparison(components=8)


@pytest.fixture
def counts() -> tuple[np.ndarray, np.ndarray]:
    """Log counts of cells of two sources, and their source codes."""
    rng = np.random.default_rng(0)
    source = rng.integers(0, 2, 400).astype(np.int32)
    profile = rng.gamma(2.0, 0.5, (6, 120))[rng.integers(0, 6, 400)]
    technology = np.exp(rng.normal(0, 0.7, (2, 120)))
    return np.log1p(rng.poisson(profile * technology[source])).astype(np.float32), source


@pytest.mark.parametrize("prior", [0.0, 7.0])
def test_clusters_give_the_offsets_of_least_squares(prior: float) -> None:
    rng = np.random.default_rng(0)
    source, cluster = rng.integers(0, 4, 90), rng.integers(0, 6, 90)
    cluster[source == 3] = np.where(cluster[source == 3] < 2, 0, 1)
    x = rng.normal(size=(90, 5)) + 3 * source[:, None] + rng.normal(size=(6, 5))[cluster]
    # Every cell is an equation m_c + b_s = x; no cluster has 20 cells of a source.
    design, right = np.zeros((94, 10)), np.zeros((94, 5))
    design[np.arange(90), cluster] = design[np.arange(90), 6 + source] = 1
    right[:90] = x
    design[90:, 6:] = np.sqrt(prior) * np.eye(4)  # and of the prior, b_s = 0
    want = np.linalg.lstsq(design, right, rcond=None)[0][6:]
    found = clustered_offsets(x.astype(np.float32), source, cluster, 4, prior)
    np.testing.assert_allclose(found - found[0], want - want[0], atol=1e-3)


def test_many_cells_of_a_cluster_count_no_more_than_twenty() -> None:
    size = [20, 20, 20, 500]
    source, cluster = np.repeat([0, 1, 0, 1], size), np.repeat([0, 0, 1, 1], size)
    x = np.repeat([0.0, 1.0, 0.0, 3.0], size)[:, None].astype(np.float32)
    b = clustered_offsets(x, source, cluster, n_sources=2, prior=0)
    np.testing.assert_allclose(b[1] - b[0], 2.0, rtol=1e-5)


def test_sources_without_a_cluster_in_common_stay_where_they_are() -> None:
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    code = np.repeat([0, 1], 10)
    np.testing.assert_array_equal(clustered_offsets(x, code, code, n_sources=3), np.zeros((3, 3)))


def test_matches_are_mutual_and_of_cells_that_are_alike() -> None:
    # Kinds at right angles; the sources share the first one alone, and differ by 5 and 7.
    kind, source = np.repeat([0, 1, 0, 2], 15), np.repeat([0, 0, 1, 1], 15)
    rng = np.random.default_rng(0)
    directions = np.eye(3)[kind] + rng.normal(0, 0.05, (60, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    x = (10.0 * np.eye(3)[kind][:, :2] + np.array([5.0, 7.0]) * source[:, None]).astype(np.float32)
    b = matched_offsets(x, directions, source, n_sources=2)
    # About 100 pairs are right; the means of the sources, 10 off in the second value, count as 2.
    np.testing.assert_allclose(b[1] - b[0], [5, 7], atol=0.3)
    # Without a kind in common, the sources are apart as their means are.
    apart = kind > 0
    b = matched_offsets(x[apart], directions[apart], source[apart], n_sources=2)
    means = [x[apart & (source == code)].mean(0) for code in (0, 1)]
    np.testing.assert_allclose(b[1] - b[0], means[1] - means[0], atol=1e-4)


def test_offsets_follow_from_the_seed(counts: tuple[np.ndarray, np.ndarray]) -> None:
    by = Comparison(components=8, seed=3)
    first, again = (source_offsets(*counts, n_sources=2, by=by) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_the_largest_seed_is_a_seed(counts: tuple[np.ndarray, np.ndarray]) -> None:
    by = Comparison(components=8, seed=2**32 - 1)
    found = source_offsets(*counts, n_sources=2, by=by)
    assert np.isfinite(found).all()


def test_sources_of_one_feature_are_centered() -> None:
    # It has no components that cells could be compared by.
    source = np.arange(60) % 3
    x = np.random.default_rng(0).normal(size=(60, 1)).astype(np.float32) + source[:, None]
    found = source_offsets(x, source, 3, BY)
    means = [x[source == code].mean(0) for code in range(3)]
    np.testing.assert_allclose(found - found[0], means - means[0], atol=1e-5)


def test_a_source_of_one_modality_alone_is_not_left_out_of_it() -> None:
    # Three sources; the third has proteins alone, and is off by 2 in all of them.
    rng = np.random.default_rng(0)
    kind, source = rng.integers(0, 4, 900), np.repeat([0, 1, 2], 300)
    order = rng.permutation(900)
    kind, source = kind[order], source[order]
    rna, protein = (
        (rng.normal(0, 2, (4, n))[kind] + rng.normal(0, 0.3, (900, n))).astype(np.float32)
        for n in (30, 12)
    )
    protein += 2.0 * (source == 2)[:, None]
    rna[source == 2] = np.nan
    _, b = modality_offsets([rna, protein], source, 3, BY)
    np.testing.assert_allclose(b[2] - b[0], 2.0, atol=0.5)
    np.testing.assert_allclose(b[1] - b[0], 0.0, atol=0.5)
    assert modality_offsets([rna, protein], np.where(source == 2, -1, source), 3, BY) == [None] * 2


@pytest.mark.parametrize("source", [[1, 1, 1], [0, 1, -1], [0, 1, 2]])
def test_nothing_is_aligned_of_one_source_or_of_unknown_ones(source: list[int]) -> None:
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    assert source_offsets(x, np.array(source), n_sources=2, by=BY) is None


def test_factors_and_offsets_give_the_values_behind_each_source_s_statistics() -> None:
    rng = np.random.default_rng(0)
    source = np.repeat([0, 1, 2], [60, 60, 19])
    x = rng.normal(1, 2, size=(139, 4)).astype(np.float32) + source[:, None]
    offsets = rng.normal(size=(3, 4)).astype(np.float32)
    found = align(x, source, offsets, epsilon=0.1)
    moved = x - offsets[source]
    np.testing.assert_allclose(found.scale, np.sqrt(moved.var(0) + 0.1), rtol=1e-5)
    np.testing.assert_allclose(found.x, (moved - moved.mean(0)) / found.scale, atol=1e-5)
    for code in (0, 1):
        own = x[source == code]
        own = (own - own.mean(0)) / np.sqrt(own.var(0) + 0.1)
        behind = own * found.factor[code] + found.offset[code]
        np.testing.assert_allclose(behind, found.x[source == code], atol=1e-5)
    np.testing.assert_array_equal(found.factor[2], 1)  # of too few cells
    np.testing.assert_array_equal(found.offset[2], 0)
