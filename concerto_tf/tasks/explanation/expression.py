"""How genes are expressed in groups of cells, with a test by scanpy."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from concerto_tf.models.modality import ModalityInput
from concerto_tf.records import CellSet
from concerto_tf.tasks.io.values import normalized_parts

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger("concerto_tf")
#: Cells that are compared, at most: their values are held in memory.
MOST_CELLS = 20_000
COLUMNS = ("share_in", "share_out", "log_fold_change", "p_adjusted", "value")


def expression(
    records: CellSet, one: ModalityInput, group: np.ndarray, n_groups: int
) -> dict[str, np.ndarray]:
    """Expression of the features of a modality in each group of cells beside all others.

    Args:
        records: The cells.
        one: What a model looks at in the modality; these features are compared.
        group: Group of each cell by its row in the input; -1 for none.
        n_groups: Number of groups.

    Returns:
        Arrays [groups, features]: ``share_in`` and ``share_out``, the share of the cells that
        express a feature in the group and in all others; ``log_fold_change`` (base 2) and
        ``p_adjusted`` (Benjamini and Hochberg) of scanpy's Wilcoxon test; and ``value``, the mean
        log-normalized value. NaN where there is nothing to compare: fewer than 2 cells, or no
        others.
    """
    values, codes = _values(records, one, group)
    found = {name: np.full((n_groups, one.n_inputs), np.nan) for name in COLUMNS}
    sizes = np.bincount(codes, minlength=n_groups)
    nonzero = (values > 0).astype(np.float64)
    for code in np.flatnonzero(sizes).tolist():
        own = codes == code
        found["value"][code] = np.asarray(values[own].mean(0)).ravel()
        found["share_in"][code] = np.asarray(nonzero[own].mean(0)).ravel()
        if sizes[code] < len(codes):
            found["share_out"][code] = np.asarray(nonzero[~own].mean(0)).ravel()
    for code, table in _tested(values, codes, sizes).items():
        found["log_fold_change"][code] = table["logfoldchanges"].to_numpy(float)
        found["p_adjusted"][code] = table["pvals_adj"].to_numpy(float)
    return found


def _values(
    records: CellSet, one: ModalityInput, group: np.ndarray
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Log-normalized values [n, features] of cells that have a group, and their groups [n]."""
    chosen = group >= 0
    if chosen.sum() > MOST_CELLS:
        _log.info("%s: %d of the cells are compared by the test", records.name, MOST_CELLS)
        rows = np.random.default_rng(0).choice(np.flatnonzero(chosen), MOST_CELLS, False)
        chosen = np.zeros(len(group), bool)
        chosen[rows] = True
    genes = slice(None) if one.genes is None else list(one.genes)
    parts, codes = [], []
    for rows, values in normalized_parts(records, one.name):
        # A cell without any value lacks the modality.
        kept = chosen[rows] & (values.getnnz(axis=1) > 0)
        parts.append(values[kept][:, genes])
        codes.append(group[rows[kept]])
    return sp.vstack(parts, "csr"), np.concatenate(codes)


def _tested(values: sp.csr_matrix, codes: np.ndarray, sizes: np.ndarray) -> dict[int, pd.DataFrame]:
    """Scanpy's table of each group that can be compared, in the order of the features."""
    import pandas as pd
    import scanpy as sc
    from anndata import AnnData

    compared = [code for code, n in enumerate(sizes) if 1 < n < len(codes) - 1]
    if not compared:
        return {}
    adata = AnnData(
        values,
        pd.DataFrame({"group": pd.Categorical(codes.astype(str))}, map(str, range(len(codes)))),
        pd.DataFrame(index=[str(i) for i in range(values.shape[1])]),
    )
    adata.uns["log1p"] = {"base": None}
    names = [str(code) for code in compared]
    sc.tl.rank_genes_groups(adata, "group", groups=names, method="wilcoxon", use_raw=False)
    tables = {}
    for code, name in zip(compared, names, strict=True):
        table = sc.get.rank_genes_groups_df(adata, group=name)
        tables[code] = table.set_index(table["names"].astype(int)).sort_index()
    return tables
