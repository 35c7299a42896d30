"""Whether values are counts, amounts on a linear scale, log-normalized, or something else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp

from concerto_tf.errors import InputError

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
# Cells that tell the units of an input: so many, from so many places all over it.
_SAMPLE_CELLS, _PLACES = 768, 16
# Share of values that are no whole numbers among counts, as by an accident; who reads all cells
# says where they are.
_ODD_VALUES = 0.001
# A cell of which less is whole holds no counts; how many values tell so of a cell.
_HARDLY_WHOLE, _TELLING = 0.05, 5
# How much alike cells add up that were made to add up to something.
_SAME_TOTAL = 1e-3
# How far the totals of log-normalized inputs may lie apart.
_OTHER_TOTAL = 1.1


def units_of(cells: Input, modalities: Iterable[str]) -> dict[str, str]:
    """The units of those modalities that an input has, by cells from all over it.

    Raises:
        InputError: It holds cells of several units.
    """
    found = {}
    for name, blocks in _samples(cells, modalities).items():
        try:
            found[name] = detect_units(blocks)
        except InputError as error:
            raise InputError(f"{cells.name}: {name}: {error.message}", "layer") from error
    return found


def total_of(cells: Input, modality: str) -> float:
    """What the cells of a log-normalized input were made to add up to before the logarithm."""
    totals = [_Cells.of(block).logs for block in _samples(cells, [modality])[modality]]
    return float(np.median(np.concatenate(totals)))


def check_totals(inputs: Sequence[Input], modality: str) -> None:
    """Raises InputError if log-normalized inputs were made to add up to different totals."""
    totals = [total_of(cells, modality) for cells in inputs]
    least, most = int(np.argmin(totals)), int(np.argmax(totals))
    if totals[most] > _OTHER_TOTAL * totals[least]:
        raise InputError(
            f"{modality}: log-normalized to {totals[least]:,.0f} per cell in {inputs[least].name} "
            f"and to {totals[most]:,.0f} in {inputs[most].name}; normalize them alike, or name the "
            "layer with the counts",
            "layer",
        )


def _samples(cells: Input, modalities: Iterable[str]) -> dict[str, list[sp.csr_matrix]]:
    """Some cells from all over an input, by modality."""
    size = min(_SAMPLE_CELLS, cells.n_cells)
    places = 1 if size == cells.n_cells else _PLACES
    starts = np.linspace(0, cells.n_cells - size // places, places).astype(int).tolist()
    samples = [cells.chunk(start, start + size // places) for start in starts]
    own = [name for name in modalities if name in cells.modalities]
    return {name: [sample[name] for sample in samples] for name in own}


class _Cells(NamedTuple):
    """What the values of cells tell of their units, each [cells that have values].

    Attributes:
        values: Number of values.
        whole: How many of them are whole numbers.
        top: The largest.
        sums: What they add up to.
        logs: What exp(value) - 1 adds up to.
    """

    values: np.ndarray
    whole: np.ndarray
    top: np.ndarray
    sums: np.ndarray
    logs: np.ndarray

    @staticmethod
    def of(block: sp.csr_matrix) -> _Cells:
        values = block.data.astype(np.float64)

        def total(of: np.ndarray) -> np.ndarray:
            matrix = sp.csr_matrix((of, block.indices, block.indptr), block.shape)
            return np.asarray(matrix.sum(axis=1)).ravel()[filled]

        filled = np.diff(block.indptr) > 0
        top = block.max(axis=1).toarray().ravel() if block.nnz else np.zeros(block.shape[0])
        return _Cells(
            np.diff(block.indptr)[filled],
            total((values == np.rint(values)).astype(np.float64)),
            top[filled].astype(np.float64),
            total(values),
            total(np.expm1(np.minimum(values, _LARGEST_LOG))),
        )


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

    Raises:
        InputError: Some cells hold counts and others log-normalized values, or they are
            log-normalized to different totals.

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
    found = [_Cells.of(block) for block in blocks]
    cells = _Cells(*map(np.concatenate, zip(*found, strict=True))) if found else None
    if cells is None or (cells.whole == cells.values).all():
        return COUNTS
    n_cells, beyond = len(cells.top), cells.top > _LARGEST_LOG
    # One cell has a constant total whatever its units are.
    totals = cells.logs[~beyond]
    totals = totals[totals > 0]
    constant = len(totals) >= (_LOGNORM_CELLS if beyond.any() else 2) and _are_same(totals)
    telling = cells.values >= _TELLING
    counted = (cells.whole == cells.values) & telling
    logged = (cells.whole < _HARDLY_WHOLE * cells.values) & telling & ~beyond
    if counted.any() and logged.any() and _are_same(cells.logs[logged]):
        raise InputError(
            f"{counted.sum()} of {n_cells} cells that were looked at hold counts, and "
            f"{logged.sum()} log-normalized values; give cells of one kind, or name the layer with "
            "the counts"
        )
    if (cells.values - cells.whole).sum() <= _ODD_VALUES * cells.values.sum():
        return COUNTS
    if beyond.any():
        return LINEAR if beyond.mean() >= _LINEAR_CELLS and not constant else VALUES
    if n_cells > 1 and _spread(cells.sums) <= min(_SAME_TOTAL, _spread(cells.logs) / 2):
        return LINEAR  # proportions
    if not constant and len(totals) >= _LOGNORM_CELLS:
        low, high = np.quantile(totals, [0.01, 0.99])
        near = [np.abs(totals / total - 1) <= _TOTAL_TOLERANCE for total in (low, high)]
        if high > _OTHER_TOTAL * low and (near[0] | near[1]).mean() >= 0.9:
            raise InputError(
                f"some cells are log-normalized to {low:,.0f} per cell, others to {high:,.0f}; "
                "normalize them alike, or name the layer with the counts"
            )
    return LOGNORM if constant else VALUES


def _spread(totals: np.ndarray) -> float:
    """How far 90% of positive totals lie from their median, at most, as a share of it."""
    return float(np.quantile(np.abs(totals / np.median(totals) - 1), 0.9))


def _are_same(totals: np.ndarray) -> bool:
    return bool(_spread(totals) <= _TOTAL_TOLERANCE)


def are_counts(values: np.ndarray) -> bool:
    """Whether some values of a matrix, zeros included or not, are counts, as `detect_units` says.

    Unlike it, needs no whole cells, so that a matrix stored gene by gene can be looked at as it is.

    Args:
        values: Of any shape and numeric dtype.

    Example:
        >>> are_counts(np.array([3.0, 1.0, 2.0])), are_counts(np.array([0.7, 1.1]))
        (True, False)
    """
    whole = (values >= 0) & (values == np.rint(values))
    return bool((~whole).sum() <= _ODD_VALUES * values.size)


def scales_with_depth(units: str) -> bool:
    """Whether values add up to a total per cell that is to be scaled out, then log1p taken.

    Args:
        units: As `detect_units` tells them.
    """
    return units in (COUNTS, LINEAR)
