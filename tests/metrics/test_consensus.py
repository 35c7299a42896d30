"""Consensus of clusterings against the full co-association matrix."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from concerto_tf.errors import InputError
from concerto_tf.metrics import co_association, consensus


def full(labels: np.ndarray) -> np.ndarray:
    """The matrix of cells x cells, pair by pair."""
    n = len(labels)
    return np.array([[(labels[i] == labels[j]).mean() for j in range(n)] for i in range(n)])


def partitions(n: int) -> Iterator[list[int]]:
    """All ways to part n cells."""

    def grow(codes: list[int]) -> Iterator[list[int]]:
        if len(codes) == n:
            yield codes
            return
        for c in range(max(codes) + 2):
            yield from grow([*codes, c])

    yield from grow([0])


def worth(found: np.ndarray, matrix: np.ndarray) -> float:
    """Sum of (co-association - 1/2) over the pairs that are put together."""
    together = found[:, None] == found[None]
    return (np.triu(matrix - 0.5, 1) * together).sum()


def planted(
    n: int = 300, k: int = 5, runs: int = 15, wrong: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Clusterings of which each errs in cells of its own, and merges two groups of its own."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n)
    columns = []
    for _ in range(runs):
        codes = np.where(rng.random(n) < wrong, rng.integers(0, k, n), truth)
        a, b = rng.choice(k, 2, replace=False)
        columns.append(np.where(codes == a, b, codes))
    return np.stack(columns, axis=1), truth


def test_blocks_are_the_full_matrix() -> None:
    labels, _ = planted(50)
    names = np.array([f"cluster {c}" for c in range(5)])[labels]
    rows = [block for _, block in co_association(names, block=7)]
    assert max(map(len, rows)) == 7 and rows[0].dtype == np.float32
    np.testing.assert_allclose(np.concatenate(rows), full(labels), atol=1e-6)


def test_is_the_best_of_all_partitions_of_the_full_matrix() -> None:
    hits = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        # With a clustering in which each cell is alone, no cluster is too small.
        labels = np.column_stack([rng.integers(0, 3, (7, 6)), np.arange(7)])
        matrix = full(labels)
        best = max(worth(np.array(codes), matrix) for codes in partitions(7))
        got = worth(consensus(labels, seed=seed)[0], matrix)
        assert got >= 0.7 * best
        hits += got == pytest.approx(best)
    assert hits >= 17  # a search by moves may end early where hardly anything agrees


def test_finds_what_single_clusterings_miss() -> None:
    labels, truth = planted()
    single = max(adjusted_rand_score(truth, column) for column in labels.T)
    for k in (None, 5):
        found, sure = consensus(labels, k)
        assert single < 0.6 and adjusted_rand_score(truth, found) > 0.97
        assert len(np.unique(found)) == 5
        together = found[:, None] == found[None]
        want = (full(labels) * together).sum(1) / together.sum(1)
        np.testing.assert_allclose(sure, want, atol=1e-5)
        assert (sure.dtype, found.dtype) == (np.float32, np.int64)


def test_kmeans_is_that_of_the_full_matrix() -> None:
    labels, _ = planted(120, 4, wrong=0.5)
    found, _ = consensus(labels, n_clusters=4)
    matrix = full(labels)

    def inertia(codes: np.ndarray) -> float:
        """Kernel K-means: squared distances within clusters, from the matrix alone."""
        within = sum(
            matrix[np.ix_(codes == c, codes == c)].sum() / (codes == c).sum()
            for c in np.unique(codes)
        )
        return np.trace(matrix) - within

    ours = inertia(found)
    for cell in range(len(found)):  # no cell is better off elsewhere by more than its own weight
        for other in range(4):
            moved = found.copy()
            moved[cell] = other
            if len(np.unique(moved)) == 4:
                assert inertia(moved) > ours - 0.02


def test_agreeing_clusterings_are_the_consensus() -> None:
    codes = np.repeat([0, 1, 2], [3, 40, 1])  # small clusters on which all agree stay
    found, sure = consensus(np.stack([codes, codes + 5, 9 - codes], axis=1))
    assert adjusted_rand_score(codes, found) == 1 and (sure == 1).all()
    found, _ = consensus(np.zeros((6, 2), int))
    assert found.tolist() == [0] * 6


def test_cells_without_agreement_are_no_clusters() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 30)
    labels = np.tile(truth[:, None], 10)
    labels[0], labels[40] = rng.integers(0, 3, (2, 10))
    found, sure = consensus(labels)
    assert len(np.unique(found)) == 3 and adjusted_rand_score(truth[1:], found[1:]) > 0.9
    assert sure[0] < 0.7 < sure[5]


def test_seed_decides() -> None:
    labels, _ = planted(80, wrong=0.7)
    for k in (None, 4):
        one, again = consensus(labels, k, seed=3)[0], consensus(labels, k, seed=3)[0]
        np.testing.assert_array_equal(one, again)


def test_memory_does_not_grow_with_the_square() -> None:
    labels, truth = planted(20_000, 8, runs=10, wrong=0.1)
    tracemalloc.start()
    found, _ = consensus(labels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert adjusted_rand_score(truth, found) > 0.95
    assert peak < 60e6  # 1,600 MB for the matrix in float32


def test_bad_input() -> None:
    labels, _ = planted(20)
    with pytest.raises(InputError, match="clusters is 21; .* from 1 to the 20 cells"):
        consensus(labels, n_clusters=21)
    with pytest.raises(InputError, match="only 2 groups of cells apart"):
        consensus(np.array([[0, 0], [0, 0], [1, 1]]), n_clusters=3)
    with pytest.raises(InputError, match="1 of 2 cells lack a cluster"):
        consensus(np.array([["a", "b"], [None, "c"]], object))
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        consensus(np.zeros(3))
