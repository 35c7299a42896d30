"""Nearest neighbours of an embedding, and scanpy's graph of them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import spmatrix

# Cells up to which neighbours are exact; above, an approximate search takes over. Cells past which
# igraph is given the graph at once, each pair once, and not through scanpy's lists of pairs.
EXACT_CELLS, MANY_CELLS = 50_000, 200_000
# Of UMAP's scales: how often an interval is halved at most, how close a sum has to come to what it
# should be, and the least scale as a share of the mean distance.
_HALVINGS, _CLOSE, _LEAST_SCALE = 64, 1e-5, 1e-3
# Of the map by igraph: standard deviation along the axis that it begins with, and passes.
_BEGIN, _EPOCHS = 5.0, 200


def nearest_others(z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest other cells of each cell, exactly, by Euclidean distance.

    Args:
        z: [n, d] float embedding, n > k.
        k: number of neighbours, the cell itself not being one.

    Returns:
        distances [n, k] and positions [n, k], nearest first.
    """
    from sklearn.neighbors import NearestNeighbors

    # asked for the neighbours of its own training points, scikit-learn leaves out the point itself
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(z).kneighbors()


def _nearly_nearest_others(z: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What `nearest_others` gives, nearly all of it."""
    from concerto_tf.metrics.approximate import ApproximateSearch

    positions, distances = ApproximateSearch(z, seed=seed).search(z, k + 1)
    itself = positions == np.arange(len(z))[:, np.newaxis]
    itself[~itself.any(axis=1), -1] = True  # cells just like it were found instead
    return tuple(x[~itself].reshape(len(z), k) for x in (distances, positions))


def fuzzy_graph(positions: np.ndarray, distances: np.ndarray) -> sp.csr_matrix:
    """UMAP's graph of nearest neighbours: how surely cells are connected.

    A cell is connected with its nearest neighbour for sure, and with others the less the farther
    they are, by a scale of its own: the sum over its k neighbours, itself being one, is log2(k).
    Two cells are connected if either says so. umap-learn computes the same, once it has compiled
    itself, which takes most of the time of a `run` on few cells.

    Args:
        positions: Nearest other cells of each cell [n, k - 1], nearest first.
        distances: Their distances [n, k - 1].

    Returns:
        Connectivities [n, n], float32, symmetric.

    Example:

    >>> import numpy as np
    >>> distances, positions = nearest_others(np.array([[0.0], [1.0], [3.0]]), 2)
    >>> fuzzy_graph(positions, distances).toarray().diagonal().tolist()
    [0.0, 0.0, 0.0]

    Reference:
        McInnes, Healy and Melville, "UMAP", arXiv:1802.03426 (2018), algorithms 2 and 3.
    """
    n, others = distances.shape
    d = distances.astype(np.float64)
    apart = np.where(d > 0, d, np.inf).min(axis=1)  # nearest cell that is not the same
    beyond = np.maximum(d - np.where(np.isfinite(apart), apart, 0)[:, np.newaxis], 0)
    low, high, scale = np.zeros(n), np.full(n, np.inf), np.ones(n)
    open_ = np.ones(n, bool)
    for _ in range(_HALVINGS):
        total = np.exp(-beyond[open_] / scale[open_, np.newaxis]).sum(axis=1)
        gap = total - np.log2(others + 1)
        rows = np.flatnonzero(open_)
        high[rows[gap > 0]] = scale[rows[gap > 0]]
        low[rows[gap <= 0]] = scale[rows[gap <= 0]]
        found = np.abs(gap) < _CLOSE
        open_[rows[found]] = False
        middle = np.where(np.isfinite(high), (low + high) / 2, 2 * scale)
        scale[open_] = middle[open_]
        if not open_.any():
            break
    typical = np.where(np.isfinite(apart), d.sum(axis=1) / (others + 1), d.sum() / (n * others + n))
    scale = np.maximum(scale, _LEAST_SCALE * typical)
    weight = np.exp(-beyond / np.maximum(scale, np.finfo(float).tiny)[:, np.newaxis])
    row = np.repeat(np.arange(n), others)
    one = sp.csr_matrix((weight.ravel().astype(np.float32), (row, positions.ravel())), (n, n))
    other = one.T.tocsr()
    both = one + other - one.multiply(other)
    both.eliminate_zeros()
    return both.tocsr()


def scanpy_graph(z: np.ndarray, seed: int = 0) -> AnnData:
    """An AnnData of the cells with scanpy's neighbour graph of the embedding.

    A cell has 15 neighbours, itself being one, or as many as there are. They are exact up to 50,000
    cells, and 0.98 of them are above (`ApproximateSearch`).

    Args:
        z: [n, d] float embedding of at least 2 cells.
        seed: of the approximate search.

    Returns:
        AnnData [n, 0] with `obsm["Z"]`, `uns["neighbors"]` and `obsp`.
    """
    adata, k = _bare(z), min(15, len(z) - 1) if len(z) > 2 else 2
    if len(z) > EXACT_CELLS:
        distances, positions = _nearly_nearest_others(adata.obsm["Z"], k - 1, seed)
    else:
        distances, positions = nearest_others(adata.obsm["Z"], k - 1)
    ends = np.arange(len(z) + 1) * (k - 1)
    matrix = sp.csr_matrix(
        (distances.ravel().astype(np.float64), positions.ravel(), ends), (len(z), len(z))
    )
    params = {"n_neighbors": k, "method": "umap", "random_state": seed, "metric": "euclidean"}
    return restore_graph(z, fuzzy_graph(positions, distances), matrix, params)


def restore_graph(
    z: np.ndarray, connectivities: spmatrix, distances: spmatrix, params: dict
) -> AnnData:
    """What `scanpy_graph` returned, from its stored matrices and parameters."""
    adata = _bare(z)
    adata.obsp["connectivities"], adata.obsp["distances"] = connectivities, distances
    adata.uns["neighbors"] = {
        "connectivities_key": "connectivities",
        "distances_key": "distances",
        "params": params | {"use_rep": "Z"},
    }
    return adata


def _bare(z: np.ndarray) -> AnnData:
    """Cells with nothing but their embedding `obsm["Z"]`."""
    import pandas as pd
    from anndata import AnnData

    adata = AnnData(obs=pd.DataFrame(index=[str(i) for i in range(len(z))]))
    adata.obsm["Z"] = np.ascontiguousarray(z, np.float32)
    return adata


def leiden(graph: AnnData, resolution: float, seed: int) -> np.ndarray:
    """Leiden clusters of a graph that `scanpy_graph` made.

    Args:
        graph: cells with their neighbour graph; up to 200,000 cells scanpy's column "leiden" is
            written into it.
        resolution: higher gives more clusters.
        seed: of the algorithm.

    Returns:
        Codes [n].
    """
    import scanpy as sc

    if graph.n_obs > MANY_CELLS:
        return _leiden_of_many(graph.obsp["connectivities"], resolution, seed)
    sc.tl.leiden(
        graph,
        resolution=resolution,
        random_state=seed,
        flavor="igraph",
        n_iterations=2,
        directed=False,
    )
    return graph.obs["leiden"].cat.codes.to_numpy()


def _leiden_of_many(connectivities: spmatrix, resolution: float, seed: int) -> np.ndarray:
    """What scanpy does, in a sixth of the memory: it writes each pair down twice, as a tuple."""
    import igraph

    pairs = sp.triu(connectivities, 1).tocoo()
    links = igraph.Graph(connectivities.shape[0], np.stack([pairs.row, pairs.col], 1))
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = links.community_leiden(
            "modularity", weights=pairs.data.tolist(), resolution=resolution, n_iterations=2
        )
    finally:
        igraph.set_random_number_generator(random)
    return np.array(found.membership)


def umap_layout(graph: AnnData, seed: int) -> np.ndarray:
    """UMAP's map of cells by igraph, from the first two principal components on.

    Args:
        graph: At least 3 cells with their neighbour graph, from `scanpy_graph`.
        seed: Of the layout.

    Returns:
        Positions [n, 2], float32. The least distance is scanpy's, 0.5.
    """
    import igraph

    near = graph.obsp["distances"].tocsr()
    cell = np.repeat(np.arange(near.shape[0]), np.diff(near.indptr))
    links = igraph.Graph(near.shape[0], np.stack([cell, near.indices], 1).tolist(), directed=True)
    z = graph.obsm["Z"].astype(np.float64)
    z = np.pad(z - z.mean(axis=0), [[0, 0], [0, max(0, 2 - z.shape[1])]])
    begin = z @ np.linalg.eigh(z.T @ z)[1][:, :-3:-1]
    begin *= _BEGIN / max(begin.std(axis=0).max(), 1e-12)
    begin += np.random.default_rng(seed).normal(0, 1e-2, begin.shape)  # equal cells come apart
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = links.layout_umap(
            dist=near.data.tolist(), seed=begin.tolist(), min_dist=0.5, epochs=_EPOCHS
        )
    finally:
        igraph.set_random_number_generator(random)
    return np.array(found.coords, np.float32)
