"""Whether values are counts, amounts on a linear scale, log-normalized, or something else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from concerto_tf.records.inputs.input import Input

COUNTS = "counts"
LINEAR = "linear"
LOGNORM = "lognorm"
VALUES = "values"

#: What the values of a cell are made to add up to, where its depth is scaled out.
TARGET_SUM = 10_000

# log1p of this is more than 10^8 counts, and a logarithm to base 2 more than a million.
_LARGEST_LOG = 20.0
# Cells with a larger value are linear if they are this share at least and the others, where there
# are this many, are not log-normalized: among those there are odd values at times.
_LINEAR_CELLS, _LOGNORM_CELLS = 0.02, 10
# How far the totals of log-normalized cells may lie from their median, for 90% of the cells.
_TOTAL_TOLERANCE = 0.02
# Cells at the beginning, in the middle and at the end of an input that tell its units.
_SAMPLE_CELLS = 256


def units_of(cells: Input, modalities: Iterable[str]) -> dict[str, str]:
    """The units of those modalities that an input has, by some of its cells."""
    size = min(_SAMPLE_CELLS, cells.n_cells)
    starts = sorted({0, (cells.n_cells - size) // 2, cells.n_cells - size})
    samples = [cells.chunk(start, start + size) for start in starts]
    own = [name for name in modalities if name in cells.modalities]
    return {name: detect_units(sample[name] for sample in samples) for name in own}


def detect_units(blocks: Iterable[sp.csr_matrix]) -> str:
    """The units of some cells.

    Args:
        blocks: cells x genes, nonnegative and finite, of any numeric dtype; a few hundred cells
            from several places of the input are enough.

    Returns:
        "counts": whole numbers, in whatever dtype. "linear": fractions on the scale of counts (TPM,
        expected or corrected counts, counts scaled to a total without a logarithm), told by cells
        with values that no logarithm reaches. "lognorm": exp(value) - 1 adds up to the same
        total in nearly every cell, so log1p of values normalized per cell. "values": anything else
        (other logarithms, or a selection of genes after normalization).

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
    largest, totals = [np.zeros(0)], [np.zeros(0)]
    for block in blocks:
        values = block.data
        if whole and not np.array_equal(values, np.rint(values)):
            whole = False
        if not values.size:
            continue
        filled = np.diff(block.indptr) > 0
        top = block.max(axis=1).toarray().ravel()[filled].astype(np.float64)
        logs = np.minimum(values.astype(np.float64), _LARGEST_LOG)
        counts = sp.csr_matrix((np.expm1(logs), block.indices, block.indptr), block.shape)
        largest.append(top)
        totals.append(np.asarray(counts.sum(axis=1)).ravel()[filled])
    if whole:
        return COUNTS
    beyond = np.concatenate(largest) > _LARGEST_LOG
    # One cell has a constant total whatever its units are.
    total = np.concatenate(totals)[~beyond]
    total = total[total > 0]
    constant = len(total) >= (_LOGNORM_CELLS if beyond.any() else 2) and (
        np.quantile(np.abs(total / np.median(total) - 1), 0.9) <= _TOTAL_TOLERANCE
    )
    if not beyond.any():
        return LOGNORM if constant else VALUES
    return LINEAR if beyond.mean() >= _LINEAR_CELLS and not constant else VALUES


def scales_with_depth(units: str) -> bool:
    """Whether values add up to a total per cell that is to be scaled out, then log1p taken.

    Args:
        units: As `detect_units` tells them.
    """
    return units in (COUNTS, LINEAR)
