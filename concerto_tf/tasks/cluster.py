"""Clusters and a two-dimensional map of an embedding."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from concerto_tf._files import atomic
from concerto_tf.errors import InputError
from concerto_tf.metrics.checks import as_embedding
from concerto_tf.metrics.graph import leiden, restore_graph, scanpy_graph
from concerto_tf.tasks.io.embedded import check_embedding, open_embedded
from concerto_tf.tasks.io.result import check_target

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

ALGORITHMS = ("leiden", "kmeans", "soft-kmeans", "consensus")
# Clusterings that a consensus is made of.
RUNS = 20
# Cells per step, and steps, of the soft K-means network.
SOFT_CELLS, SOFT_STEPS = 256, 300
# Column of `obs` that is written.
CLUSTER = "concerto_cluster"
# Key of the neighbour graph in `uns`, and prefix of its matrices in `obsp`.
GRAPH_KEY = "concerto_neighbors"
# Cells below which a neighbour graph is too coarse for UMAP to begin from its spectrum.
FEW_CELLS = 16


def cluster(
    cells: str | Path | AnnData,
    out: str | Path | None = None,
    *,
    rep: str = "X_concerto",
    algorithm: str = "leiden",
    resolution: float = 0.6,
    k: int | None = None,
    seed: int = 0,
    runs: int | None = None,
    clusterings: Sequence[str] | None = None,
) -> AnnData:
    """Clusters cells by their embedding, into ``obs["concerto_cluster"]``.

    A consensus is the clustering that agrees best with many; how sure each cell is goes to
    ``obs["concerto_cluster_agreement"]``.

    Args:
        cells: An `.h5ad` with an embedding in obsm, or an AnnData, which is changed in place.
        out: The `.h5ad` to write; ``None`` writes nothing.
        rep: Key of the embedding in obsm.
        algorithm: ``leiden``, ``kmeans``, ``soft-kmeans`` or ``consensus``.
        resolution: Resolution of Leiden; higher gives more clusters.
        k: Number of clusters; a consensus without it finds its own number.
        seed: Seed of the algorithm.
        runs: Clusterings that a consensus is made of; by default 20.
        clusterings: Columns of obs to make the consensus of instead; no embedding is needed then.

    Returns:
        The AnnData.

    Raises:
        InputError: The file or an argument is unsuitable.
    """
    if out is not None:
        check_target(out)
    adata = open_embedded(cells, backed=False)
    if clusterings is None:
        check_embedding(cells if isinstance(cells, str | Path) else "AnnData", adata, rep)
    add_clusters(adata, rep, algorithm, resolution, k, seed, runs=runs, clusterings=clusterings)
    if out is not None:
        with atomic(out) as temporary:
            adata.write_h5ad(temporary)
    return adata


def add_clusters(
    adata: AnnData,
    rep: str = "X_concerto",
    algorithm: str = "leiden",
    resolution: float = 0.6,
    k: int | None = None,
    seed: int = 0,
    runs: int | None = None,
    clusterings: Sequence[str] | None = None,
) -> None:
    """Clusters cells by their embedding, into a category of `adata.obs`.

    Clusters are named "0", "1", ... from the largest to the smallest.

    A consensus agrees best with many clusterings: Leiden from half to twice the resolution, with
    `k` as many of K-means; or any columns of `adata.obs` (`concerto_tf.metrics.consensus`). The
    mean co-association of a cell with its cluster goes to `concerto_cluster_agreement`.

    Args:
        adata: Cells; changed in place.
        rep: Key of the embedding in `adata.obsm`, or "X".
        algorithm: "leiden" on the graph of 15 nearest neighbours (Euclidean), "kmeans",
            "soft-kmeans" (a network that starts from K-means, `SoftKMeans`) or "consensus".
        resolution, k, seed, runs, clusterings: As in `concerto_tf.cluster`.

    Raises:
        InputError: No such embedding, it is not finite, an unknown algorithm, K-means without k or
            with more clusters than cells, no such column.

    Example:
        >>> import numpy as np
        >>> from anndata import AnnData
        >>> from concerto_tf.tasks.cluster import add_clusters
        >>> adata = AnnData(np.zeros((40, 1), "float32"))
        >>> adata.obsm["X_concerto"] = np.repeat([[0.0, 0.0], [9.0, 9.0]], [30, 10], axis=0)
        >>> add_clusters(adata, algorithm="kmeans", k=2)
        >>> adata.obs["concerto_cluster"].value_counts().to_dict()
        {'0': 30, '1': 10}
    """
    if algorithm not in ALGORITHMS:
        raise InputError(f"unknown algorithm {algorithm!r}: use one of {', '.join(ALGORITHMS)}.")
    if algorithm == "leiden" and k is not None:
        raise InputError(
            "k is for kmeans, soft-kmeans and consensus: use algorithm 'kmeans', or resolution "
            "with leiden."
        )
    if algorithm != "consensus" and (runs is not None or clusterings is not None):
        raise InputError("runs and clusterings are for consensus: use algorithm 'consensus'.")
    if not (np.isfinite(resolution) and resolution > 0):
        raise InputError(f"resolution is {resolution!r}: it must be a positive number.")
    if algorithm == "consensus":
        from concerto_tf.metrics.consensus import consensus

        labels = (
            _runs(adata, rep, resolution, k, seed, runs)
            if clusterings is None
            else _columns(adata, clusterings, runs)
        )
        found, sure = consensus(labels, k, seed)
        adata.obs[f"{CLUSTER}_agreement"] = sure
    elif algorithm == "leiden":
        found = _leiden(adata, rep, embedding_of(adata, rep), [resolution], [seed])[0]
    else:
        z = embedding_of(adata, rep)
        found = _kmeans(z, k, seed)
        if algorithm == "soft-kmeans":
            found = _soft_kmeans(z, found, seed)
    adata.obs[CLUSTER] = _by_size(found)


def umap(adata: AnnData, seed: int = 0) -> None:
    """Maps `obsm["X_concerto"]` to two dimensions, into `adata.obsm["X_umap"]` (float32 [n, 2]).

    UMAP of the graph of 15 nearest neighbours by Euclidean distance, as in the Concerto paper.
    Fewer than 3 cells are put on a line.

    Args:
        adata: Cells; changed in place.
        seed: Seed of the layout.

    Raises:
        InputError: No such embedding, or it is not finite.

    Reference:
        McInnes, Healy and Melville, "UMAP", arXiv:1802.03426 (2018).
    """
    rep = "X_concerto"
    z = embedding_of(adata, rep)
    if len(z) < 3:
        adata.obsm["X_umap"] = np.stack([np.arange(len(z)), np.zeros(len(z))], 1).astype("f4")
        return
    import scanpy as sc

    graph = neighbour_graph(adata, rep, z, seed)
    sc.tl.umap(graph, random_state=seed, init_pos="random" if len(z) < FEW_CELLS else "spectral")
    adata.obsm["X_umap"] = graph.obsm["X_umap"].astype(np.float32)


def embedding_of(adata: AnnData, rep: str) -> np.ndarray:
    """The embedding `rep` as float32 [n, d]."""
    if rep == "X":
        x = adata.X
        return as_embedding(x.toarray() if hasattr(x, "toarray") else x)
    if rep not in adata.obsm:
        known = ", ".join(adata.obsm) or "none"
        raise InputError(f"no embedding {rep!r} in obsm (there: {known}): name one of these.")
    return as_embedding(np.asarray(adata.obsm[rep]))


def neighbour_graph(adata: AnnData, rep: str, z: np.ndarray, seed: int) -> AnnData:
    """Scanpy's neighbour graph of `z`, kept in `adata` so that it is computed once.

    A fingerprint of the embedding says whether the graph that is there is the one of `z`.
    """
    keys = {m: f"{GRAPH_KEY}_{m}" for m in ("connectivities", "distances")}
    fingerprint = hashlib.sha256(np.ascontiguousarray(z).data).hexdigest()
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
    connectivities, distances = (adata.obsp[key] for key in keys.values())
    return restore_graph(z, connectivities, distances, stored["params"])


def _leiden(
    adata: AnnData, rep: str, z: np.ndarray, resolutions: Iterable[float], seeds: Sequence[int]
) -> list[np.ndarray]:
    """Leiden clusters as codes [n], one clustering for each resolution and seed."""
    if len(z) == 1:  # has no neighbours and is its own cluster
        return [np.zeros(1) for _ in resolutions]
    graph = neighbour_graph(adata, rep, z, min(seeds))
    return [leiden(graph, *options) for options in zip(resolutions, seeds, strict=True)]


def _runs(
    adata: AnnData, rep: str, resolution: float, k: int | None, seed: int, runs: int | None
) -> np.ndarray:
    """Different clusterings of the cells [n, runs]."""
    runs = RUNS if runs is None else runs
    if int(runs) != runs or runs < 2:
        raise InputError(f"runs is {runs!r}: a consensus needs at least 2 clusterings.")
    z = embedding_of(adata, rep)
    of_kmeans = 0 if k is None else int(runs) // 2
    found = [_kmeans(z, k, (seed + i) % 2**32, starts=1) for i in range(of_kmeans)]
    resolutions = resolution * np.geomspace(0.5, 2.0, int(runs) - of_kmeans)
    seeds = [(seed + i) % 2**32 for i in range(len(resolutions))]
    found += _leiden(adata, rep, z, resolutions, seeds)
    return np.stack(found, axis=1)


def _columns(adata: AnnData, clusterings: Sequence[str], runs: int | None) -> np.ndarray:
    """Clusterings that are there already [n, runs]."""
    from concerto_tf.metrics.checks import as_codes, complete

    if runs is not None:
        raise InputError("runs are made where no clusterings are given: leave one of them out.")
    if len(clusterings) < 2:
        raise InputError(f"a consensus of {len(clusterings)} clusterings: it needs at least 2.")
    for name in clusterings:
        if name not in adata.obs:
            known = ", ".join(map(str, adata.obs)) or "none"
            raise InputError(f"no column {name!r} in obs (there: {known}): name some of these.")
    return np.stack(
        [
            complete(as_codes(adata.obs[name], adata.n_obs, what), what)
            for name, what in ((name, f"clusters {name!r}") for name in clusterings)
        ],
        axis=1,
    )


def _soft_kmeans(z: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    """Clusters as codes [n] by a network that starts from those of K-means."""
    import tensorflow as tf

    from concerto_tf.models.contrastive_sc.soft_kmeans import SoftKMeans

    z = z - z.mean(axis=0)  # a layer with a ReLU sees where the middle lies
    n, cells = len(z), min(len(z), SOFT_CELLS)
    model = SoftKMeans(int(start.max()) + 1, z.shape[1], seed=seed)
    model.start(z, start)
    model.compile("adam")
    data = tf.data.Dataset.from_tensor_slices(z).shuffle(n, seed=seed).repeat()
    data = data.batch(cells, drop_remainder=True)
    model.fit(data, epochs=1, steps_per_epoch=SOFT_STEPS, shuffle=False, verbose=0)
    whole = tf.data.Dataset.from_tensor_slices(z).batch(SOFT_CELLS)
    return np.concatenate([model(part).numpy().argmax(axis=1) for part in whole])


def _kmeans(z: np.ndarray, k: int | None, seed: int, starts: int = 10) -> np.ndarray:
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
            return KMeans(int(k), n_init=starts, random_state=seed).fit_predict(z)
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
