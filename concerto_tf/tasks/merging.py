"""Clusters that stay apart by source: said, and drawn together where asked for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from concerto_tf.errors import Argument, InputError
from concerto_tf.numerics.islands import drawn_together, islands
from concerto_tf.tasks.cluster import CLUSTER, cluster
from concerto_tf.tasks.embed import KEY
from concerto_tf.tasks.io.provenance import found_out

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("concerto_tf")


def check_merge(merge: float) -> None:
    """Raises InputError if sources cannot be drawn together so far."""
    if not 0 <= merge <= 1:
        raise InputError(f"merge is {merge}; it must lie within 0 and 1", "merge")


def merge_sources(
    adata: AnnData, source: np.ndarray, merge: float, resolution: float | str, seed: int
) -> None:
    """Warns of clusters of one source each that may be of one cell type, or draws them together.

    Args:
        adata: The cells with their embedding and clusters; where cells are moved, both are changed.
        source: Source of each cell [n].
        merge: How far, from 0 (not at all) to 1 (their means meet).
        resolution: As in `cluster`.
        seed: Seed of the clusters.
    """
    names, codes = np.unique(np.asarray(source, str), return_inverse=True)
    pairs = islands(adata.obsm[KEY], codes, adata.obs[CLUSTER].cat.codes.to_numpy())
    if not pairs:
        if merge:
            _log.warning("nothing is merged: no two clusters, each of one source alone, are close")
        return
    called = adata.obs[CLUSTER].cat.categories
    told = "; ".join(
        " and ".join(
            f"{called[of]} ({names[by]}, {n:,} cells)" for of, by, n in zip(*pair, strict=True)
        )
        for pair in pairs
    )
    if merge:
        _log.info("clusters that stayed apart by source are merged: %s", told)
        found_out(merged={"before": told})
        of = adata.obs[CLUSTER].cat.codes.to_numpy()
        adata.obsm[KEY] = drawn_together(adata.obsm[KEY], of, pairs, merge)
        cluster(adata, resolution=resolution, seed=seed)
    else:
        _log.warning(
            "clusters that stay apart by source, though each pair may be one cell type: %s; "
            "compare the markers of each pair, and merge them if they agree (%s)",
            told,
            Argument("merge", 1),
        )
