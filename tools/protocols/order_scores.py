"""How well an inferred order of cells agrees with a known one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from concerto_tf.errors import InputError


def order_scores(pseudotime: Sequence[float], truth: Sequence[float]) -> dict[str, float]:
    """Spearman's rank correlation of pseudotime with the true order, ties sharing their ranks.

    Args:
        pseudotime: [n] float; not finite for cells that the trajectory does not reach.
        truth: [n] stages or times; NaN where not known.

    Returns:
        `spearman`, from -1 to 1, over the cells that have both; 0 where all of these have one
        pseudotime. `reached`, the share of cells with a known order that have a pseudotime.

    Raises:
        InputError: lengths differ, or there are fewer than 3 such cells or 2 such stages.

    Example:
        >>> from protocols.order_scores import order_scores
        >>> order_scores([0.0, 0.1, 0.9, float("inf")], [1, 1, 2, 2])
        {'spearman': 0.866..., 'reached': 0.75}

    Reference:
        CLEAR (Han et al., Briefings in Bioinformatics 2022), pseudotime inference.
    """
    from scipy.stats import spearmanr

    inferred, known = np.asarray(pseudotime, np.float64), np.asarray(truth, np.float64)
    if inferred.shape != known.shape or inferred.ndim != 1:
        raise InputError(
            f"pseudotime has shape {inferred.shape} and the true order {known.shape}: one value "
            "for each cell is needed in both."
        )
    told = np.isfinite(known)
    both = told & np.isfinite(inferred)
    if both.sum() < 3 or len(np.unique(known[both])) < 2:
        raise InputError(
            f"{int(both.sum())} cells have both a pseudotime and a known order, of "
            f"{len(np.unique(known[both]))} stages: an order needs 3 cells of 2 stages."
        )
    constant = np.ptp(inferred[both]) == 0
    spearman = 0.0 if constant else spearmanr(inferred[both], known[both]).statistic
    return {"spearman": float(spearman), "reached": float(both.sum() / told.sum())}
