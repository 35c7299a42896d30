"""What is said of the clusters of a run: what marks them, and how well they are told apart."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from concerto_tf._progress import stage
from concerto_tf.errors import InputError
from concerto_tf.jobs import Job
from concerto_tf.numerics.support import cluster_support
from concerto_tf.records import CellSet, Records
from concerto_tf.records.batch import RNA
from concerto_tf.tasks.io.run_folder import RECORDS
from concerto_tf.tasks.io.values import normalized_parts
from concerto_tf.tasks.markers import MARKERS, rank_markers

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_log = logging.getLogger("concerto_tf")
#: Column of `obs` with the support of each cell's cluster, and key of the table in `uns`.
SUPPORT = "concerto_cluster_support"
#: Keys of `uns` that say something of clusters.
TABLES = (MARKERS, SUPPORT)
#: Cells of a cluster that tell its support, at most.
_MOST_CELLS = 200
#: Support below which clusters are named.
_LITTLE = 0.75


def describe(adata: AnnData, clusters: str, records: CellSet, seed: int = 0) -> None:
    """Says of clusters what marks them, and how well each is told from the one nearest to it.

    Markers go to ``uns["rank_genes_groups"]`` (`rank_markers`), support to
    ``obs["concerto_cluster_support"]`` and, cluster by cluster, to ``uns`` of the same name: a
    table with ``cluster``, ``cells``, ``nearest`` (the cluster it is told from least) and
    ``support`` (`cluster_support`).

    Args:
        adata: The cells, with `X_concerto`; changed in place.
        clusters: Column of obs with their clusters.
        records: The same cells, with their values.
        seed: Seed of what is drawn for the support.
    """
    with stage("markers of the clusters"):
        found = rank_markers(records, adata.obs[clusters])
    if found:
        adata.uns[MARKERS] = found
    table = _supported(adata, clusters, records, seed)
    adata.uns[SUPPORT] = table
    by_cell = table["support"].to_numpy()[adata.obs[clusters].cat.codes]
    adata.obs[SUPPORT] = by_cell.astype(np.float32)
    little = table[table["support"] < _LITTLE]
    if len(little):
        _log.info(
            "%d of %d clusters are hardly told from another by genes held out (support below %g; "
            "0.5 is chance): %s",
            len(little),
            len(table),
            _LITTLE,
            ", ".join(
                f"{row.cluster} from {row.nearest} ({row.support:.2f})"
                for row in little.itertuples()
            ),
        )


def _supported(adata: AnnData, clusters: str, records: CellSet, seed: int) -> pd.DataFrame:
    """The table of support."""
    import pandas as pd

    codes, names = adata.obs[clusters].cat.codes.to_numpy(), adata.obs[clusters].cat.categories
    z = np.asarray(adata.obsm["X_concerto"])
    rng = np.random.default_rng(seed)
    of_clusters = [np.flatnonzero(codes == code) for code in range(len(names))]
    centers = np.stack([z[cells].mean(axis=0) for cells in of_clusters])
    drawn = np.sort(np.concatenate([rng.permutation(own)[:_MOST_CELLS] for own in of_clusters]))
    rows = records.obs()["row"]
    place = np.full(rows.max() + 1, -1)
    place[rows[drawn]] = drawn
    at, parts = [], []
    for row, values in normalized_parts(records, RNA):
        own = place[row] >= 0
        at.append(place[row[own]])
        parts.append(values[own])
    cells = np.concatenate(at)
    order = np.argsort(cells)
    values = sp.vstack(parts, "csr")[order]
    support, nearest = cluster_support(values, codes[cells[order]], centers, seed)
    return pd.DataFrame(
        {
            "cluster": names.astype(str),
            "cells": [len(own) for own in of_clusters],
            "nearest": [names[code] if code >= 0 else "" for code in nearest],
            "support": support,
        }
    )


def forget(adata: AnnData, clusters: str) -> None:
    """Removes what was said of the clusters that were there before.

    Args:
        adata: The cells; changed in place.
        clusters: Column of obs with their clusters. Markers by other columns are the user's own.
    """
    if adata.uns.get(MARKERS, {}).get("params", {}).get("groupby") == clusters:
        del adata.uns[MARKERS]
    adata.uns.pop(SUPPORT, None)
    if SUPPORT in adata.obs:
        adata.obs = adata.obs.drop(columns=SUPPORT)


def describe_again(run: Job, adata: AnnData, clusters: str, seed: int = 0) -> None:
    """Describes the clusters of a finished run by its records, where these are still there.

    Args:
        run: The run.
        adata: Its result; changed in place.
        clusters, seed: As in `describe`.
    """
    try:
        records = Records(run.out / RECORDS)
        if not np.array_equal(records.obs()["cell"], adata.obs_names.to_numpy(object)):
            raise InputError(f"{records.path}: holds other cells than the result")
        describe(adata, clusters, records, seed)
    except InputError as error:
        _log.warning("the clusters have no markers and no support: %s", error.message)
