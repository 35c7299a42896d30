"""Whether values are counts, amounts on a linear scale, log-normalised, or something else."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy.sparse as sp

COUNTS = "counts"
LINEAR = "linear"
LOGNORM = "lognorm"
VALUES = "values"

# log1p of more than this is more than 10^13 counts.
_LARGEST_LOG = 30.0
# How far the totals of log-normalised cells may lie from their median, for 90% of the cells.
_TOTAL_TOLERANCE = 0.02


def detect_units(blocks: Iterable[sp.csr_matrix]) -> str:
    """The units of some cells.

    Args:
        blocks: cells x genes, nonnegative and finite, of any numeric dtype; a few hundred cells
            from several places of the input are enough.

    Returns:
        "counts": whole numbers, in whatever dtype. "linear": fractions on the scale of counts (TPM,
        expected or corrected counts, counts scaled to a total without a logarithm), told by values
        that no logarithm reaches. "lognorm": exp(value) - 1 adds up to the same
        total in nearly every cell, so log1p of values normalised per cell. "values": anything else
        (other logarithms, or a selection of genes after normalisation).

    Example:
        >>> import numpy as np
        >>> counts = sp.csr_matrix(np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0]]))
        >>> detect_units([counts])
        'counts'
        >>> totals = np.asarray(counts.sum(axis=1))
        >>> detect_units([counts.multiply(1e4 / totals).log1p().tocsr()])
        'lognorm'
        >>> detect_units([counts * 99.9])
        'linear'
        >>> detect_units([counts * 0.3])
        'values'
    """
    whole = True
    beyond_logs = []
    totals = []
    for block in blocks:
        values = block.data
        if whole and not np.array_equal(values, np.rint(values)):
            whole = False
        if not values.size:
            continue
        beyond_logs.append(values.max() > _LARGEST_LOG)
        if beyond_logs[-1]:
            continue
        counts = sp.csr_matrix(
            (np.expm1(values.astype(np.float64)), block.indices, block.indptr), block.shape
        )
        total = np.asarray(counts.sum(axis=1)).ravel()
        totals.append(total[total > 0])
    if whole:
        return COUNTS
    if all(beyond_logs):
        return LINEAR
    total = np.concatenate(totals)
    # One cell has a constant total whatever its units are.
    if len(total) < 2 or any(beyond_logs):
        return VALUES
    deviation = np.abs(total / np.median(total) - 1)
    return LOGNORM if np.quantile(deviation, 0.9) <= _TOTAL_TOLERANCE else VALUES


def scales_with_depth(units: str) -> bool:
    """Whether values add up to a total per cell that is to be scaled out, then log1p taken.

    Args:
        units: As `detect_units` tells them.
    """
    return units in (COUNTS, LINEAR)
