"""Whether cells look as if nobody had filtered them: it is said, and nothing is left out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.sparse as sp

from concerto_tf.records.inputs.input import Input

# Genes of the mitochondrion: MT-ND1 of humans, mt-Nd1 of mice, MT.ND1 where R wrote the name, and
# GRCh38_MT-ND1 of two genomes at once.
_MITOCHONDRIAL = re.compile(r"(?:\w+_)?mt[-.:][a-z]", re.IGNORECASE)
# Inputs of fewer genes are panels or selections, whose cells have few genes by nature.
_WHOLE_TRANSCRIPTOME = 10_000
# Cells of fewer genes are left out by most, unless half of all have no more than so many; with
# fewer than the last they are droplets without a cell by any assay.
_FEW, _USUAL, _EMPTY = 200, 400, 50
# Shares of mitochondrial counts that most leave out, and that hardly any living cell has.
_MUCH, _DYING = 0.2, 0.5
# Shares of cells above which it is said. Cleaned sets of cells that are rich in mitochondria have
# up to 3% above `_MUCH`.
_FEW_CELLS, _EMPTY_CELLS, _MUCH_CELLS, _DYING_CELLS = 0.02, 0.1, 0.05, 0.01
_DOUBLETS = re.compile(r"doublet|dbl|^df\.class", re.IGNORECASE)
_IS_DOUBLET = {"doublet", "true", "1"}


def cell_figures(matrix: sp.csr_matrix, names: Sequence[str]) -> dict[str, Any]:
    """What tells filtered cells: how many have how many genes and mitochondrial counts.

    Args:
        matrix: Counts [n, genes]; cells without any are of no account.
        names: Symbols of the genes.

    Returns:
        ``cells``, those with few, hardly any and the usual number of genes, and, where the genes
        of the mitochondrion are there, how many have 0, 1, ... 100% of their counts there.

    Example:
        >>> counts = sp.csr_matrix([[1, 3], [0, 2], [0, 0]])
        >>> found = cell_figures(counts, ["MT-ND1", "CD3E"])
        >>> found["cells"], [share for share, n in enumerate(found["mitochondrial"]) if n]
        (2, [0, 25])
    """
    genes = np.diff(matrix.indptr)
    filled = genes > 0
    found: dict[str, Any] = {
        "cells": int(filled.sum()),
        "few": int((filled & (genes < _FEW)).sum()),
        "empty": int((filled & (genes < _EMPTY)).sum()),
        "usual": int((genes >= _USUAL).sum()),
    }
    own = _mitochondrial(tuple(names))
    if own.any():
        inside = matrix @ own.astype(np.float64)
        share = inside[filled] / np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()[filled]
        bins = np.floor(100 * share + 1e-9).astype(int)
        found["mitochondrial"] = np.bincount(bins, minlength=101).tolist()
    return found


@lru_cache(maxsize=4)
def _mitochondrial(names: tuple[str, ...]) -> np.ndarray:
    """Which genes are of the mitochondrion, bool [genes]; kept, as each chunk asks anew."""
    return np.array([_MITOCHONDRIAL.match(name) is not None for name in names])


def unfiltered(cells: Input, figures: Sequence[Mapping[str, Any]]) -> str | None:
    """What to say of an input whose cells look unfiltered; None of others.

    Args:
        cells: The input.
        figures: `cell_figures` of all its cells.
    """
    total = {key: sum(of[key] for of in figures) for key in ("cells", "few", "empty", "usual")}
    n = max(total["cells"], 1)
    found = []
    if len(cells.genes) >= _WHOLE_TRANSCRIPTOME:
        if total["empty"] >= _EMPTY_CELLS * n:
            found.append(f"{total['empty'] / n:.0%} of the cells have fewer than {_EMPTY} genes")
        elif total["few"] >= _FEW_CELLS * n and 2 * total["usual"] >= n:
            found.append(f"{total['few'] / n:.0%} of the cells have fewer than {_FEW} genes")
    if all("mitochondrial" in of for of in figures):
        share = np.sum([of["mitochondrial"] for of in figures], axis=0)
        above = {limit: share[round(100 * limit) :].sum() / n for limit in (_MUCH, _DYING)}
        if above[_MUCH] >= _MUCH_CELLS or above[_DYING] >= _DYING_CELLS:
            median = int(np.searchsorted(np.cumsum(share), n / 2))
            limit = _MUCH if above[_MUCH] >= _MUCH_CELLS else _DYING
            found.append(
                f"{above[limit]:.0%} have {limit:.0%} or more mitochondrial counts (median "
                f"{median}%)"
            )
    column, doublets = _doublets(cells)
    if doublets:
        found.append(f"{doublets:,} are called doublets in obs[{column!r}]")
    if not found:
        return None
    unknown = "; no column of obs tells doublets" if column is None else ""
    return (
        f"{cells.name}: looks unfiltered: {', '.join(found)}{unknown}; leave out empty droplets, "
        "dying cells and doublets first, unless this tissue is so"
    )


def _doublets(cells: Input) -> tuple[str | None, int]:
    """The column of obs that tells doublets, if any, and how many it calls so."""
    known = None
    for key in cells.columns:
        if _DOUBLETS.search(key):
            known = key
            if getattr(getattr(cells.values(key), "dtype", None), "kind", "O") == "f":
                continue  # a score
            codes, names = cells.column(key)
            called = [i for i, name in enumerate(names) if name.lower() in _IS_DOUBLET]
            if called:
                return key, int(np.isin(codes, called).sum())
    return known, 0
