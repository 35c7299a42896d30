"""Approximate neighbours against all distances."""

from __future__ import annotations

import numpy as np
import pytest

from concerto_tf.metrics.approximate import ApproximateSearch


def cells(n: int, seed: int, d: int = 32) -> np.ndarray:
    """Cells of 30 overlapping groups, of unit length."""
    of_groups, rng = np.random.default_rng(0), np.random.default_rng(seed)
    center, shape = of_groups.normal(size=(30, d)), of_groups.normal(size=(30, 8, d)) / 3
    group = rng.integers(0, 30, n)
    z = center[group] + np.einsum("nk,nkd->nd", rng.normal(size=(n, 8)), shape[group])
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("cosine", [True, False])
def test_recall_is_reached_on_other_cells_than_it_was_measured_on(cosine: bool) -> None:
    reference, query = cells(20_000, 1), cells(1000, 2)
    index, near = (search := ApproximateSearch(reference, cosine)).search(query, 30)
    all_cosines = query @ reference.T
    true = np.argsort(-all_cosines, axis=1)[:, :30]
    recall = np.mean([len(np.intersect1d(a, b)) / 30 for a, b in zip(index, true, strict=True)])
    assert recall >= 0.98 and search.recall >= 0.99
    want = np.take_along_axis(all_cosines, index.astype(int), 1)
    np.testing.assert_allclose(near, want if cosine else np.sqrt(2 - 2 * want), atol=2e-4)
    assert (np.diff(near if cosine else -near, axis=1) <= 0).all()
    # Asked for so many, or by so few, it compares with all.
    index, _ = search.search(query[:3], 19_999)
    assert len(np.unique(index[0])) == 19_999
    np.testing.assert_array_equal(search.search(query[:200], 5)[0], true[:200, :5])


def test_far_cells_are_looked_for_until_they_are_found() -> None:
    """Cells without any groups are the hardest: nearly all lists hold some of the nearest."""
    z = np.random.default_rng(0).normal(size=(3000, 30)).astype(np.float32)
    index, distance = (search := ApproximateSearch(z)).search(z, 10)
    apart = np.linalg.norm(z[:100, np.newaxis] - z, axis=2)
    assert search.recall >= 0.99
    np.testing.assert_array_equal(index[:, 0], np.arange(3000))
    found = np.sort(apart, axis=1)[:, :10] >= distance[:100] - 1e-5
    assert found.mean() >= 0.97


def test_codes_are_of_the_axes_along_which_cells_differ() -> None:
    """Ten axes in 32 dimensions, and little along the others: shorter codes find as much."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(6000, 10)) @ np.linalg.qr(rng.normal(size=(32, 10)))[0].T
    z = (z + rng.normal(0, 0.01, z.shape) + 3).astype(np.float32)
    index, distance = (search := ApproximateSearch(z)).search(z, 10)
    assert len(search.saved()) < 0.8 * len(ApproximateSearch(cells(6000, 1)).saved())
    apart = np.stack([np.linalg.norm(cell - z, axis=1) for cell in z[:999]])
    recall = (distance[:999] <= np.sort(apart, axis=1)[:, 9:10] + 1e-5).mean()
    assert recall >= 0.98 and search.recall >= 0.99
    again = ApproximateSearch(z, built=search.saved())
    np.testing.assert_array_equal(again.search(z, 10)[0], index)


def test_one_seed_is_one_index_and_a_kept_one_is_the_same() -> None:
    z = cells(2000, 3, d=13)
    search = ApproximateSearch(z, cosine=True, seed=1)
    assert (search.saved() == ApproximateSearch(z, cosine=True, seed=1).saved()).all()
    other = ApproximateSearch(z, cosine=True, seed=2).saved()
    assert len(other) != len(search.saved()) or (other != search.saved()).any()
    again = ApproximateSearch(z, cosine=True, built=search.saved())
    for one, two in zip(again.search(z, 5), search.search(z, 5), strict=True):
        np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match="other cells"):
        ApproximateSearch(z[1:], built=search.saved())
