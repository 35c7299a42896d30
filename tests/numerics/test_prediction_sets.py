"""Prediction sets: their definition, and the coverage that they state."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from concerto_tf.numerics.prediction_sets import (
    kept_scores,
    label_sets,
    nonconformity,
    of_truth,
    threshold,
)


def make_cells(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of five labels, and labels drawn by them."""
    p = rng.dirichlet(np.full(5, 0.7), n)
    return p, (p.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)


def test_nonconformity_counts_what_is_more_probable() -> None:
    rng = np.random.default_rng(0)
    p = rng.multinomial(15, [0.5, 0.2, 0.2, 0.1], 50) / 15  # with ties, as of neighbours
    want = [[sum(other for other in row if other > own) for own in row] for row in p]
    np.testing.assert_allclose(nonconformity(p), want, atol=1e-12)
    codes = rng.integers(0, 4, 50)
    np.testing.assert_allclose(of_truth(p, codes), np.array(want)[np.arange(50), codes])
    assert (nonconformity(np.zeros((1, 3))) == 0).all()  # where nobody votes, nothing is excluded


@pytest.mark.parametrize("sharpened", [1.0, 3.0], ids=["calibrated", "overconfident"])
@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_coverage_is_what_is_stated(coverage: float, sharpened: float) -> None:
    """Of m cells as many are covered as the beta-binomial law says; fails by chance in 1 of 1,000.

    Probabilities may be wrong. The law holds for scores without ties, which is where a set has
    several labels.
    """
    rng, n, m = np.random.default_rng(1), 400, 4000
    p, label = make_cells(n + m, rng)
    p = p**sharpened / (p**sharpened).sum(axis=1, keepdims=True)
    limit = threshold(kept_scores(of_truth(p[:n], label[:n])), n, coverage)
    sets = label_sets(p[n:], limit)
    j = int(np.floor((n + 1) * (1 - coverage) + 1e-9))
    law = stats.betabinom(m, n + 1 - j, j)
    covered = sets[np.arange(m), label[n:]].sum()
    assert law.ppf(0.0005) <= covered <= law.ppf(0.9995)
    assert (sets.sum(axis=1) >= 1).all() and sets.mean() < 0.95


def test_of_few_cells_nothing_is_excluded() -> None:
    p = np.array([[0.9, 0.1, 0.0]])
    for n in (0, 18):
        assert label_sets(p, threshold(np.zeros(n), n, 0.95)).all()
    assert label_sets(p, threshold(np.zeros(19), 19, 0.95)).tolist() == [[True, False, False]]
    assert label_sets(p, threshold(np.zeros(19), 19, 1.0)).all()


def test_weighted_scores_are_those_of_the_cells_that_they_stand_for() -> None:
    rng = np.random.default_rng(2)
    common, rare = rng.uniform(0, 0.5, 5000), rng.uniform(0.4, 1, 100)
    some = np.concatenate([common[:500], rare])
    weight = np.repeat([10.0, 1.0], [500, 100])
    whole = kept_scores(np.concatenate([common, rare]))
    for coverage in (0.5, 0.9, 0.99):
        want = threshold(whole, 5100, coverage)
        assert threshold(kept_scores(some, weight), 5100, coverage) == pytest.approx(want, abs=0.05)
    # Without weights, quantiles of many cells are no smaller than their scores.
    kept = kept_scores(common, np.ones(5000))
    for coverage in (0.5, 0.9, 0.95):
        exact = threshold(np.sort(common), 5000, coverage)
        assert exact <= threshold(kept, 5000, coverage) <= exact + 0.002
