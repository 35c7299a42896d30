"""Sets of labels that hold the true one with a stated coverage, by split conformal prediction.

The nonconformity of a cell's label is the probability of all labels that are more probable: 0 for
the most probable one, near 1 for one that hardly anything speaks for. Of known cells, of which
nothing was learned, the nonconformity of their true label is kept. A set of another cell then holds
every label that is no less conforming than all but a share of these.
"""

from __future__ import annotations

import math

import numpy as np

#: Quantiles that are kept of many scores.
_KEPT = 1_000
#: What rounding may do to a sum of probabilities.
_ROUNDING = 1e-5


def nonconformity(probabilities: np.ndarray) -> np.ndarray:
    """How much speaks against each label: the probability of all that are more probable.

    Args:
        probabilities: [n, L], each row adding up to 1, or all 0.

    Returns:
        Values within 0 and 1 [n, L]; labels of one probability have one value.

    Example:

    >>> import numpy as np
    >>> nonconformity(np.array([[0.25, 0.5, 0.25, 0.0]])).tolist()
    [[0.5, 0.0, 0.5, 1.0]]
    """
    p = np.asarray(probabilities, np.float64)
    order = np.argsort(-p, axis=1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=1)
    before = np.cumsum(ranked, axis=1) - ranked
    for rank in range(1, p.shape[1]):
        same = ranked[:, rank] == ranked[:, rank - 1]
        before[same, rank] = before[same, rank - 1]
    found = np.empty_like(p)
    np.put_along_axis(found, order, before, axis=1)
    return found


def of_truth(probabilities: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """`nonconformity` of the true labels of known cells [n], by their codes [n]."""
    return np.take_along_axis(nonconformity(probabilities), codes[:, np.newaxis], axis=1)[:, 0]


def kept_scores(scores: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """What to keep of the scores of known cells.

    Args:
        scores: Nonconformity of the true label of known cells [n].
        weight: How many cells each stands for [n]; ``None`` for one.

    Returns:
        The scores, ascending [n]; or where they are weighted, 1,000 quantiles of them, each a score
        that is no smaller than its share of the cells.

    Example:

    >>> import numpy as np
    >>> kept = kept_scores(np.array([0.2, 0.0]), weight=np.array([3.0, 1.0]))
    >>> kept.shape, kept[[249, 250]].tolist()
    ((1000,), [0.0, 0.2])
    """
    order = np.argsort(scores, kind="stable")
    if weight is None:
        return scores[order]
    upto = np.cumsum(weight[order])
    levels = np.arange(1, _KEPT + 1) / _KEPT
    at = np.searchsorted(upto, levels * upto[-1] * (1 - 1e-9))
    return scores[order][np.minimum(at, len(order) - 1)]


def threshold(kept: np.ndarray, n_cells: int, coverage: float) -> float:
    """The largest nonconformity of a label in a set.

    Args:
        kept: From `kept_scores`.
        n_cells: Number n of known cells behind it.
        coverage: Share of cells whose set holds their label, within 0 and 1.

    Returns:
        The ceil((n + 1) coverage)-th of the n scores; 1, and so all labels, where n is too small.

    Example:

    >>> import numpy as np
    >>> threshold(np.arange(19) / 100, 19, 0.95), threshold(np.arange(18) / 100, 18, 0.95)
    (0.18, 1.0)

    Reference:
        Angelopoulos and Bates, "Conformal Prediction: A Gentle Introduction", Foundations and
        Trends in Machine Learning 16 (2023), section 1.
    """
    rank = math.ceil((n_cells + 1) * coverage - 1e-9)
    if rank > n_cells:
        return 1.0
    return float(kept[math.ceil(len(kept) * rank / n_cells - 1e-9) - 1])


def label_sets(probabilities: np.ndarray, limit: float) -> np.ndarray:
    """Which labels cannot be excluded.

    Args:
        probabilities: [n, L].
        limit: From `threshold`.

    Returns:
        bool [n, L]; the most probable label is always among them.
    """
    return nonconformity(probabilities) <= limit + _ROUNDING
