"""What is said of the clusters of a run: the genes that mark them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.jobs import Job
from concerto_tf.records import CellSet, Records
from concerto_tf.tasks.io.run_folder import RECORDS
from concerto_tf.tasks.markers import MARKERS, rank_markers

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("concerto_tf")
#: Keys of `uns` that say something of clusters.
TABLES = (MARKERS,)


def describe(adata: AnnData, clusters: str, records: CellSet) -> None:
    """Says of clusters what marks them, in `uns`.

    Args:
        adata: The cells; changed in place.
        clusters: Column of obs with their clusters.
        records: The same cells, with their values.
    """
    found = rank_markers(records, adata.obs[clusters])
    if found:
        adata.uns[MARKERS] = found


def forget(adata: AnnData, clusters: str) -> None:
    """Removes what was said of the clusters that were there before.

    Args:
        adata: The cells; changed in place.
        clusters: Column of obs with their clusters. Markers by other columns are the user's own.
    """
    if adata.uns.get(MARKERS, {}).get("params", {}).get("groupby") == clusters:
        del adata.uns[MARKERS]


def describe_again(run: Job, adata: AnnData, clusters: str) -> None:
    """Describes the clusters of a finished run by its records, where these are still there.

    Args:
        run: The run.
        adata: Its result; changed in place.
        clusters: As in `describe`.
    """
    try:
        records = Records(run.out / RECORDS)
        if not np.array_equal(records.obs()["cell"], adata.obs_names.to_numpy(object)):
            raise InputError(f"{records.path}: holds other cells than the result")
        describe(adata, clusters, records)
    except InputError as error:
        _log.warning("the clusters have no markers: %s", error.message)
