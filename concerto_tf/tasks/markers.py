"""Genes that mark clusters, as scanpy's `rank_genes_groups` finds and keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.records import CellSet
from concerto_tf.records.batch import RNA
from concerto_tf.tasks.io.values import normalized_parts

if TYPE_CHECKING:
    import pandas as pd

#: Where scanpy keeps markers in `uns`.
MARKERS = "rank_genes_groups"
COLUMNS = "cluster gene rank score log_fold_change share_in share_out p_adjusted".split()
#: Genes that are kept of each cluster.
N_GENES = 100
_DTYPES = {
    "names": object,
    "scores": "f4",
    "logfoldchanges": "f4",
    "pvals": "f8",
    "pvals_adj": "f8",
}


def rank_markers(records: CellSet, clusters: pd.Series) -> dict[str, Any]:
    """Ranks genes of each cluster by how much higher they are than in all other cells.

    Scanpy's t-test with overestimated variance, of log-normalized values: the other cells count
    for no more than the cluster has, so that a little difference from very many cells is no sure
    one. One pass over all cells, in memory that does not grow with them.

    The clusters were found in the same values. So p-values order genes and test nothing: cells of
    one type that were cut in two have genes of a small one, too.

    Args:
        records: The cells.
        clusters: Cluster of each cell [n], a category, in the order of the cells; its name is that
            of the column of obs.

    Returns:
        What scanpy keeps in ``uns["rank_genes_groups"]``, of the 100 best genes of each cluster:
        ``names``, ``scores``, ``logfoldchanges``, ``pvals`` and ``pvals_adj`` (Benjamini and
        Hochberg's, over all genes) as structured arrays, ``pts`` and ``pts_rest`` (shares of the
        cells that express a gene) as tables, and ``params``. A cluster of one cell has no markers.
        Empty where no cluster can be told from others.
    """
    import pandas as pd
    from scipy.stats import false_discovery_control, ttest_ind_from_stats

    count, sums = _sums(records, clusters.cat.codes.to_numpy())
    whole = sums.sum(axis=1)
    names = np.array(records.vocabulary_of(RNA).ids, object)
    columns: dict[str, dict[str, np.ndarray]] = {name: {} for name in _DTYPES}
    shares: dict[str, dict[str, np.ndarray]] = {"pts": {}, "pts_rest": {}}
    for code in np.flatnonzero((count > 1) & (count < count.sum() - 1)):
        cluster, n = str(clusters.cat.categories[code]), int(count[code])
        mean, spread, share = _moments(sums[:, code], n)
        rest = _moments(whole - sums[:, code], int(count.sum()) - n)
        with np.errstate(divide="ignore", invalid="ignore"):
            score, p = ttest_ind_from_stats(mean, spread, n, rest[0], rest[1], n, equal_var=False)
        score, p = np.nan_to_num(score), np.where(np.isnan(p), 1.0, p)
        best = np.argsort(-score, kind="stable")[:N_GENES]
        change = np.log2((np.expm1(mean) + 1e-9) / (np.expm1(rest[0]) + 1e-9))
        found = (names, score, change, p, false_discovery_control(p))
        for name, values in zip(_DTYPES, found, strict=True):
            columns[name][cluster] = values[best]
        shares["pts"][cluster], shares["pts_rest"][cluster] = share, rest[2]
    if not columns["names"]:
        return {}
    there = np.isin(names, np.concatenate(list(columns["names"].values())))
    params = {"groupby": str(clusters.name), "reference": "rest", "use_raw": False}
    return {
        "params": params | {"method": "t-test_overestim_var", "corr_method": "benjamini-hochberg"},
        **{
            name: pd.DataFrame(columns[name]).to_records(index=False, column_dtypes=kind)
            for name, kind in _DTYPES.items()
        },
        **{name: pd.DataFrame(of, index=names)[there] for name, of in shares.items()},
    }


def _sums(records: CellSet, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells of each cluster [C], and sums of their values, squares and nonzeros [3, C, G]."""
    n_clusters, n_genes = codes.max() + 1, records.modalities[RNA].n_genes
    place = np.full(records.obs()["row"].max() + 1, -1)
    place[records.obs()["row"]] = codes
    sums = np.zeros((3, n_clusters, n_genes))
    for rows, values in normalized_parts(records, RNA):
        at = np.repeat(place[rows] * n_genes, np.diff(values.indptr)) + values.indices
        for total, of in zip(sums, (values.data, values.data**2, values.data > 0), strict=True):
            total += np.bincount(at, of, total.size).reshape(total.shape)
    return np.bincount(codes, minlength=n_clusters), sums


def _moments(sums: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and share of nonzeros by gene, of their sums [3, G]."""
    mean = sums[0] / n
    variance = (sums[1] - n * mean**2) / (n - 1)
    # What is left of a gene that does not vary is rounding.
    variance = np.where(variance > 1e-12 * sums[1], variance, 0.0)
    return mean, np.sqrt(variance), sums[2] / n


def marker_table(found: dict[str, Any] | None) -> pd.DataFrame:
    """Markers as a table: one row per cluster and gene that is higher there, the best first.

    Args:
        found: From `rank_markers`; None or empty where there are none.

    Returns:
        Columns ``cluster``, ``gene``, ``rank``, ``score``, ``log_fold_change`` (base 2),
        ``share_in`` and ``share_out`` (of the cells that express the gene) and ``p_adjusted``.
    """
    import pandas as pd

    found = found or {}
    tables = [pd.DataFrame(columns=COLUMNS)]
    for cluster in found["names"].dtype.names if found else ():
        genes = found["names"][cluster]
        table = pd.DataFrame(
            {
                "cluster": cluster,
                "gene": genes,
                "rank": np.arange(len(genes)) + 1,
                "score": found["scores"][cluster],
                "log_fold_change": found["logfoldchanges"][cluster],
                "share_in": found["pts"].loc[genes, cluster].to_numpy(),
                "share_out": found["pts_rest"].loc[genes, cluster].to_numpy(),
                "p_adjusted": found["pvals_adj"][cluster],
            }
        )
        tables.append(table[table["score"] > 0])
    return pd.concat(tables[1:] or tables, ignore_index=True)
