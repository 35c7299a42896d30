"""What a user would do instead: scanpy's recipe, classifiers that never abstain, neighbours."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from concerto_tf.metrics.graph import leiden, scanpy_graph
from concerto_tf.records.units import COUNTS, LINEAR, detect_units
from protocols.annotation import BASELINES
from protocols.baselines import expressed, harmony, log_normalized, pca, scanvi
from protocols.delivered_commands import Refused
from protocols.quality_cells import LABEL, SOURCE

if TYPE_CHECKING:
    from anndata import AnnData

#: Peers that need a package of their own, and its name.
NEEDS = {"harmony": "harmonypy", "scanvi": "scvi"}
_NEIGHBOURS = 15


def is_there(peer: str) -> bool:
    """Whether what a peer needs is installed."""
    return peer not in NEEDS or find_spec(NEEDS[peer]) is not None


def units(cells: AnnData) -> str:
    """The units of cells, as `detect_units` tells them."""
    import scipy.sparse as sp

    return detect_units([sp.csr_matrix(cells.X)])


def scales(cells: AnnData) -> bool:
    """Whether the depth of cells is to be scaled out, as of counts."""
    return units(cells) in (COUNTS, LINEAR)


def scanpy_clusters(cells: AnnData, seed: int, scaled: bool) -> np.ndarray:
    """Clusters by scanpy's recipe.

    Counts to 10,000 per cell, log1p, 2,000 variable genes, 50 components, 15 neighbours, Leiden at
    resolution 1.

    Args:
        cells: Cells.
        seed: Of components, neighbours and Leiden.
        scaled: Whether genes are scaled to unit variance.

    Returns:
        Codes [n].
    """
    z = components(cells, seed, scaled=scaled)
    return leiden(scanpy_graph(z, seed), 1.0, seed)


def components(cells: AnnData, seed: int, *, scaled: bool = True) -> np.ndarray:
    """50 principal components [n, 50] of 2,000 variable genes."""
    return pca(log_normalized(expressed(cells), scales(cells)), seed, scaled=scaled)


def labels_by(peer: str, reference: AnnData, query: AnnData, seed: int) -> np.ndarray:
    """Labels that a peer gives a query, by the genes that both have.

    Args:
        peer: ``logistic``, ``knn``, ``harmony`` (kNN on it, reference and query being the sources)
            or ``scanvi``.
        reference: Cells with the column ``label``.
        query: Cells.
        seed: Of the method.

    Returns:
        Names [n], of types of the reference alone.

    Raises:
        Refused: scANVI is given no counts.
    """
    import anndata
    from sklearn.neighbors import KNeighborsClassifier

    both = anndata.concat(
        {"reference": reference, "query": query}, join="inner", label=SOURCE, index_unique="-"
    )
    types, codes = np.unique(reference.obs[LABEL].to_numpy(str), return_inverse=True)
    learn, test = np.arange(len(codes)), np.arange(len(codes), both.n_obs)
    if peer in BASELINES:
        whole = np.concatenate([codes, np.full(len(test), -1)])
        return types[BASELINES[peer](both, scales(both), whole, learn, test, seed)]
    if peer == "scanvi":
        if units(both) != COUNTS:
            raise Refused("scANVI needs counts")
        both.obs[LABEL] = [*types[codes], *[None] * len(test)]
        return scanvi(both, SOURCE, LABEL, seed)[test]
    z = harmony(components(both, seed), both.obs[SOURCE], seed)
    nearest = KNeighborsClassifier(min(_NEIGHBOURS, len(learn)))
    return types[nearest.fit(z[learn], codes).predict(z[test])]
