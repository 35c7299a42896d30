"""Clusters and a two-dimensional map of an embedding."""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.metrics.inputs import as_embedding
from concerto_tf.metrics.neighbours import leiden, restore_graph, scanpy_graph

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

ALGORITHMS = ("leiden", "kmeans")
# Key of the neighbour graph in `uns`, and prefix of its matrices in `obsp`.
GRAPH_KEY = "concerto_neighbors"
# Cells below which a neighbour graph is too coarse for UMAP to begin from its spectrum.
FEW_CELLS = 16


def cluster(
    adata: AnnData,
    rep: str = "X_concerto",
    algorithm: str = "leiden",
    resolution: float = 1.0,
    k: int | None = None,
    seed: int = 0,
    key_added: str = "concerto_cluster",
) -> None:
    """Cluster cells by their embedding, into a category of `adata.obs`.

    Clusters are named "0", "1", ... from the largest to the smallest.

    Args:
        adata: cells; changed in place.
        rep: key of the embedding in `adata.obsm`, or "X".
        algorithm: "leiden" on the graph of 15 nearest neighbours (Euclidean), or "kmeans".
        resolution: of Leiden; higher gives more clusters.
        k: number of clusters, for "kmeans" only.
        seed: of the algorithm.
        key_added: column of `adata.obs` to write.

    Raises:
        InputError: no such embedding, it is not finite, an unknown algorithm, K-means without k or
            with more clusters than cells.

    Example:
        >>> import numpy as np
        >>> from anndata import AnnData
        >>> from concerto_tf.tasks.cluster import cluster
        >>> adata = AnnData(np.zeros((40, 1), "float32"))
        >>> adata.obsm["X_concerto"] = np.repeat([[0.0, 0.0], [9.0, 9.0]], [30, 10], axis=0)
        >>> cluster(adata, algorithm="kmeans", k=2)
        >>> adata.obs["concerto_cluster"].value_counts().to_dict()
        {'0': 30, '1': 10}
    """
    if algorithm not in ALGORITHMS:
        raise InputError(f"unknown algorithm {algorithm!r}: use one of {', '.join(ALGORITHMS)}.")
    z = _embedding(adata, rep)
    if algorithm == "kmeans":
        found = _kmeans(z, k, seed)
    else:
        if k is not None:
            raise InputError("k is for kmeans: use algorithm 'kmeans', or resolution with leiden.")
        if not (np.isfinite(resolution) and resolution > 0):
            raise InputError(f"resolution is {resolution!r}: it must be a positive number.")
        # a single cell has no neighbours and is its own cluster
        found = (
            leiden(_graph(adata, rep, z, seed), resolution, seed) if len(z) > 1 else np.zeros(1)
        )
    adata.obs[key_added] = _by_size(found)


def umap(adata: AnnData, rep: str = "X_concerto", seed: int = 0) -> None:
    """Map the embedding to two dimensions, into `adata.obsm["X_umap"]` (float32 [n, 2]).

    UMAP of the graph of 15 nearest neighbours by Euclidean distance, as in the Concerto paper.
    Fewer than 3 cells are put on a line.

    Args:
        adata: cells; changed in place.
        rep: key of the embedding in `adata.obsm`, or "X".
        seed: of the layout.

    Raises:
        InputError: no such embedding, or it is not finite.

    Reference:
        McInnes, Healy and Melville, "UMAP", arXiv:1802.03426 (2018).
    """
    z = _embedding(adata, rep)
    if len(z) < 3:
        adata.obsm["X_umap"] = np.stack([np.arange(len(z)), np.zeros(len(z))], 1).astype("f4")
        return
    import scanpy as sc

    graph = _graph(adata, rep, z, seed)
    sc.tl.umap(graph, random_state=seed, init_pos="random" if len(z) < FEW_CELLS else "spectral")
    adata.obsm["X_umap"] = graph.obsm["X_umap"].astype(np.float32)


def _embedding(adata: AnnData, rep: str) -> np.ndarray:
    """The embedding `rep` as float32 [n, d]."""
    if rep == "X":
        x = adata.X
        return as_embedding(x.toarray() if hasattr(x, "toarray") else x)
    if rep not in adata.obsm:
        known = ", ".join(adata.obsm) or "none"
        raise InputError(f"no embedding {rep!r} in obsm (there: {known}): name one of these.")
    return as_embedding(np.asarray(adata.obsm[rep]))


def _graph(adata: AnnData, rep: str, z: np.ndarray, seed: int) -> AnnData:
    """Scanpy's neighbour graph of `z`, kept in `adata` so that it is computed once.

    A fingerprint of the embedding says whether the graph that is there is the one of `z`.
    """
    keys = {m: f"{GRAPH_KEY}_{m}" for m in ("connectivities", "distances")}
    fingerprint = hashlib.sha256(np.ascontiguousarray(z)).hexdigest()
    stored = adata.uns.get(GRAPH_KEY, {})
    if stored.get("fingerprint") != fingerprint or any(k not in adata.obsp for k in keys.values()):
        graph = scanpy_graph(z, seed=seed)
        for matrix, key in keys.items():
            adata.obsp[key] = graph.obsp[matrix]
        # in scanpy's own layout, so that its tools take it as neighbors_key
        adata.uns[GRAPH_KEY] = {
            **{f"{matrix}_key": key for matrix, key in keys.items()},
            "params": graph.uns["neighbors"]["params"] | {"use_rep": rep},
            "fingerprint": fingerprint,
        }
        return graph
    return restore_graph(z, *(adata.obsp[k] for k in keys.values()), stored["params"])


def _kmeans(z: np.ndarray, k: int | None, seed: int) -> np.ndarray:
    """K-means clusters as codes [n]."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if k is None:
        raise InputError("kmeans needs the number of clusters: give k.")
    if int(k) != k or not 1 <= k <= len(z):
        raise InputError(f"k is {k!r}: it must be a whole number from 1 to the {len(z)} cells.")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            return KMeans(int(k), n_init=10, random_state=seed).fit_predict(z)
        except ConvergenceWarning:
            different = len(np.unique(z, axis=0))
            raise InputError(
                f"k is {k}, but the embedding has only {different} different points: lower k."
            ) from None


def _by_size(found: np.ndarray) -> pd.Categorical:
    """Clusters as a category, named "0", "1", ... from the largest to the smallest."""
    import pandas as pd

    _, codes, sizes = np.unique(found, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return pd.Categorical.from_codes(rank[codes], [str(i) for i in range(len(sizes))])
