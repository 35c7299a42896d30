"""Mixing of sources."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from concerto_tf.errors import InputError
from concerto_tf.metrics import asw_source, graph_connectivity, ilisi, kbet
from concerto_tf.metrics.integration import perplexity_weights


def by_distance(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances to all cells and their order, the cell itself first."""
    distance = np.sqrt(np.square(z[:, None] - z[None]).sum(-1))
    return distance, distance.argsort(1)


def lisi(z: np.ndarray, codes: np.ndarray, perplexity: float) -> np.ndarray:
    """Inverse Simpson index of each cell, by the definition of Korsunsky et al."""
    distance, order = by_distance(z)
    values = []
    for i in range(len(z)):
        near = order[i, 1 : int(3 * perplexity) + 1]
        d = distance[i, near]
        low, high = 0.0, 1e6
        for _ in range(200):
            beta = (low + high) / 2
            p = np.exp(-beta * (d - d.min()))
            p /= p.sum()
            entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
            low, high = (beta, high) if entropy > np.log(perplexity) else (low, beta)
        values.append(1 / sum(p[codes[near] == c].sum() ** 2 for c in np.unique(codes)))
    return np.array(values)


def partly_mixed(n: int = 160, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    codes = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    return rng.normal(size=(n, 4)) + shift * np.eye(4)[codes], codes


def test_kbet_is_the_chi_square_test() -> None:
    z, codes = partly_mixed()
    share = np.bincount(codes) / len(codes)
    order = by_distance(z)[1][:, :15]
    accepted = [
        chisquare(np.bincount(codes[near], minlength=3), share * 15).pvalue >= 0.05
        for near in order
    ]
    assert 0.1 < np.mean(accepted) < 0.95
    assert kbet(z, codes) == pytest.approx(np.mean(accepted))


def test_kbet_of_extremes() -> None:
    rng = np.random.default_rng(0)
    z, codes = rng.normal(size=(600, 3)), np.arange(600) % 2
    # Binomial(15, 1/2) lies beyond the 5% of the chi-square approximation with probability
    # 0.0352. 600 cells are about 40 disjoint neighbourhoods, so the mean of 30 shuffles has a
    # standard error of 0.0053: 0.02 is passed by chance once in 10,000 times.
    rates = [kbet(z, rng.permutation(codes)) for _ in range(30)]
    assert np.mean(rates) == pytest.approx(1 - 0.0352, abs=0.02)
    z[:, 0] += 100 * codes
    assert kbet(z, codes) == 0.0


def test_ilisi_is_the_scaled_median() -> None:
    z, codes = partly_mixed()
    expected = (np.median(lisi(z, codes, 20)) - 1) / 2
    assert 0.2 < expected < 0.9
    assert ilisi(z, codes, perplexity=20) == pytest.approx(expected, abs=1e-6)


def test_ilisi_of_extremes() -> None:
    rng = np.random.default_rng(0)
    z, codes = rng.normal(size=(1000, 3)), np.arange(1000) % 2
    assert ilisi(z, codes) > 0.9
    z[:, 0] += 100 * codes
    assert ilisi(z, codes) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_perplexity_is_reached_at_any_scale(scale: float) -> None:
    d = np.sort(np.random.default_rng(0).exponential(size=(20, 90)), axis=1) * scale
    p = perplexity_weights(d, 30)
    np.testing.assert_allclose(p.sum(1), 1)
    np.testing.assert_allclose(np.exp(-(p * np.log(p)).sum(1)), 30, rtol=1e-6)


def test_perplexity_of_ties() -> None:
    np.testing.assert_allclose(perplexity_weights(np.zeros((1, 6)), 2), 1 / 6)
    np.testing.assert_allclose(
        perplexity_weights(np.array([[1.0, 1.0, 1.0, 5.0]]), 2), [[1 / 3, 1 / 3, 1 / 3, 0]]
    )


def test_asw_source_of_extremes() -> None:
    rng = np.random.default_rng(0)
    z, codes = rng.normal(size=(600, 3)), np.arange(600) % 2
    assert asw_source(z, codes) > 0.97
    z[:, 0] += 1000 * codes
    assert asw_source(z, codes) < 0.01


def test_asw_source_within_labels() -> None:
    """Sources of different composition are not taken for unmixed ones if labels are known."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 100)
    sources = np.concatenate([rng.random(100) < 0.9, rng.random(100) < 0.1, np.zeros(100)])
    z = rng.normal(size=(300, 3)) + 50 * np.eye(3)[labels]
    z[100:200, 1] += 30 * sources[100:200]  # label 1 alone is split by source
    from sklearn.metrics import silhouette_samples

    expected = [
        1 - np.abs(silhouette_samples(z[labels == k], sources[labels == k])).mean() for k in (0, 1)
    ]
    assert expected[0] > 0.8 > 0.3 > expected[1]
    assert asw_source(z, sources, labels) == pytest.approx(np.mean(expected), abs=1e-5)
    with pytest.raises(InputError, match="no label has cells of two sources"):
        asw_source(z, labels, labels)


def test_graph_connectivity_counts_the_largest_part() -> None:
    z = np.arange(200.0)[:, None]  # on a line, where each cell is among its neighbours' nearest
    labels = np.repeat([0, 1], 100)
    z[labels == 1] += 100
    assert graph_connectivity(z, labels) == 1.0
    z[:30] += 1000  # 30 cells of label 0 go their own way: parts of 70 and 30
    assert graph_connectivity(z, labels) == pytest.approx((0.7 + 1.0) / 2)


def test_graph_connectivity_asks_for_a_way_back() -> None:
    z = np.array([[0.0], [1.0], [2.1], [3.4], [4.9]])  # each cell's nearest is the one before it
    assert graph_connectivity(z, [0] * 5, k=2) == pytest.approx(0.4)


def test_graph_connectivity_ignores_edges_between_labels() -> None:
    # on a line with one neighbour each: a a b a a; the parts of a are apart
    z = np.array([[0.0], [1.0], [2.2], [4.0], [5.0]])
    assert graph_connectivity(z, list("aabaa"), k=2) == pytest.approx((0.5 + 1.0) / 2)


def test_caps_bound_what_is_looked_at() -> None:
    z, codes = partly_mixed()
    chosen = np.sort(np.random.default_rng(4).permutation(160)[:80])
    for metric in (kbet, ilisi, graph_connectivity):
        assert metric(z, codes, seed=4, cap=80) == metric(z[chosen], codes[chosen])


def test_few_cells() -> None:
    z, sources = np.arange(6.0).reshape(3, 2), ["a", "b", "a"]
    assert 0 <= kbet(z, sources) <= 1
    assert 0 <= ilisi(z, sources) <= 1
    with pytest.raises(InputError, match="at least 3"):
        kbet(z[:2], sources[:2])
    with pytest.raises(InputError, match="only 'a'"):
        ilisi(z, ["a"] * 3)
