"""Nearest neighbours of an embedding, and scanpy's graph of them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import spmatrix

# Cells up to which neighbours are exact; above, scanpy's approximate search takes over.
EXACT_CELLS = 50_000


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


def scanpy_graph(z: np.ndarray, seed: int = 0) -> AnnData:
    """An AnnData of the cells with scanpy's neighbour graph of the embedding.

    A cell has 15 neighbours, itself being one, or as many as there are. They are exact up to 50,000
    cells and found by pynndescent above.

    Args:
        z: [n, d] float embedding of at least 2 cells.
        seed: of the approximate search.

    Returns:
        AnnData [n, 0] with `obsm["Z"]`, `uns["neighbors"]` and `obsp`.
    """
    import scanpy as sc
    from scipy.sparse import SparseEfficiencyWarning

    adata = _bare(z)
    with warnings.catch_warnings():
        # scanpy's way of adding a cell that equal cells have crowded out of its own neighbours
        warnings.simplefilter("ignore", SparseEfficiencyWarning)
        sc.pp.neighbors(
            adata,
            n_neighbors=min(15, len(z) - 1) if len(z) > 2 else 2,
            use_rep="Z",
            random_state=seed,
            transformer="sklearn" if len(z) <= EXACT_CELLS else "pynndescent",
        )
    return adata


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
        graph: cells with their neighbour graph; scanpy's column "leiden" is written into it.
        resolution: higher gives more clusters.
        seed: of the algorithm.

    Returns:
        Codes [n].
    """
    import scanpy as sc

    sc.tl.leiden(
        graph,
        resolution=resolution,
        random_state=seed,
        flavor="igraph",
        n_iterations=2,
        directed=False,
    )
    return graph.obs["leiden"].cat.codes.to_numpy()
