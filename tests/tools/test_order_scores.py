"""Rank correlation of pseudotime, against ranks written out."""

from __future__ import annotations

import numpy as np
import pytest

from concerto_tf.errors import InputError
from protocols.order_scores import order_scores


def ranks(values: np.ndarray) -> np.ndarray:
    """Mean rank of each value among all; ties share it."""
    return np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])


def test_it_is_the_correlation_of_ranks_over_the_cells_that_have_both() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(4, size=50).astype(float)
    time = truth + rng.normal(size=50)
    time[:5], truth[3:8] = np.inf, np.nan
    time[8] = np.nan
    both = np.isfinite(time) & np.isfinite(truth)
    found = order_scores(time, truth)
    want = np.corrcoef(ranks(time[both]), ranks(truth[both]))[0, 1]
    assert found["spearman"] == pytest.approx(want) and 0.3 < want < 0.99
    # of 45 cells of a known stage, the three first and the one at 8 are not reached
    assert found["reached"] == pytest.approx(41 / 45)
    assert order_scores(-time, truth)["spearman"] == pytest.approx(-want)


def test_one_pseudotime_for_all_says_nothing() -> None:
    assert order_scores([1.0, 1.0, 1.0], [1, 2, 3])["spearman"] == 0


def test_what_has_no_order_is_refused() -> None:
    with pytest.raises(InputError, match="one value for each cell"):
        order_scores([0.0, 1.0], [1])
    with pytest.raises(InputError, match="2 cells have both"):
        order_scores([0.0, 1.0, np.inf], [1, 2, 3])
    with pytest.raises(InputError, match="of 1 stages"):
        order_scores([0.0, 1.0, 2.0], [1, 1, 1])
