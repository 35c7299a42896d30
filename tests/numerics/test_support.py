"""Support of clusters: what was cut in two has none, types have it, rare ones too."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from concerto_tf.numerics.support import FEWEST, cluster_support

N_GENES = 600


def values(
    sizes: list[int], seed: int = 0, spread: float = 0.4
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Log-normalized counts of types of unlike depth, which differ in a tenth of the genes."""
    rng = np.random.default_rng(seed)
    base = rng.gamma(0.5, 1.0, N_GENES)
    changed = rng.random((len(sizes), N_GENES)) < 0.1
    mean = base * np.exp(rng.normal(0, 1.2, changed.shape) * changed)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    depth = rng.lognormal(7, spread, len(codes))
    counts = rng.poisson(depth[:, None] * (mean / mean.sum(1, keepdims=True))[codes])
    return sp.csr_matrix(np.log1p(1e4 * counts / counts.sum(1, keepdims=True))), codes


def cut(x: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Cells cut in two along their first component, as a clustering would, and the components."""
    from sklearn.decomposition import PCA

    z = PCA(5, random_state=0).fit_transform(x.toarray())
    return (z[:, 0] > np.median(z[:, 0])).astype(int), z


def centers(z: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return np.stack([z[codes == code].mean(0) for code in range(codes.max() + 1)])


@pytest.mark.parametrize("spread", [0.0, 0.6])
def test_one_type_cut_in_two_has_no_support(spread: float) -> None:
    x, _ = values([600], spread=spread)
    codes, z = cut(x)
    support, nearest = cluster_support(x, codes, centers(z, codes))
    assert (support < 0.68).all() and nearest.tolist() == [1, 0]


def test_types_have_support_and_a_rare_one_too() -> None:
    x, codes = values([300, 80, 12])
    _, z = cut(x)
    support, _ = cluster_support(x, codes, centers(z, codes))
    assert (support > 0.9).all()
    halves = np.where((codes == 0) & (np.arange(len(codes)) % 2 == 0), 3, codes)
    support, nearest = cluster_support(x, halves, centers(z, halves))
    assert support[0] < 0.68 and support[3] < 0.68 and (support[1:3] > 0.9).all()
    assert nearest[[0, 3]].tolist() == [3, 0]
    # The halves of the first type are told from the other types, and these from them.
    again = cluster_support(x, halves, centers(z, halves))
    np.testing.assert_array_equal(again[0], support)


def test_clusters_of_few_cells_have_none() -> None:
    x, codes = values([40, 30, FEWEST - 1])
    _, z = cut(x)
    support, nearest = cluster_support(x, codes, centers(z, codes))
    assert np.isnan(support[2]) and nearest[2] == -1 and np.isfinite(support[:2]).all()
    alone = cluster_support(x[:40], codes[:40], centers(z[:40], codes[:40]))
    assert np.isnan(alone[0]).all() and alone[1].tolist() == [-1]
