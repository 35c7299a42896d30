"""The neighbour graph of an embedding, kept so that it is computed once, and a map of it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._progress import stage
from concerto_tf.metrics.approximate import ApproximateSearch
from concerto_tf.metrics.graph import leiden, restore_graph, scanpy_graph, umap_layout
from concerto_tf.numerics.turns import place_in_group
from concerto_tf.tasks.io.embedded import embedding_of

if TYPE_CHECKING:
    from anndata import AnnData

# Key of the neighbour graph in `uns`, and prefix of its matrices in `obsp`.
GRAPH_KEY = "concerto_neighbors"
# Key that scanpy looks at by default, and what a graph consists of.
_SCANPYS, _MATRICES = "neighbors", ("connectivities", "distances")
# Cells up to which igraph maps them sooner than umap-learn, which compiles itself first.
_FEW_ENOUGH = 10_000
# Cells past which a sketch of so many of them is mapped, and the rest is placed between these.
MANY_CELLS, SKETCH_CELLS = 200_000, 50_000
# Resolution of the groups that a sketch takes equally many cells of: finer than that of any
# clusters, so that rare types are groups of their own. Neighbours in the sketch that place a cell.
_FINE, _PLACED_BY = 4.0, 5


def neighbour_graph(adata: AnnData, rep: str, z: np.ndarray, seed: int) -> AnnData:
    """Scanpy's neighbour graph of `z`, kept in `adata` so that it is computed once.

    A fingerprint of the embedding says whether the graph that is there is the one of `z`.
    """
    fingerprint = hashlib.sha256(np.ascontiguousarray(z).data).hexdigest()
    for key in (GRAPH_KEY, _SCANPYS):  # the latter is in the result of a run
        stored = adata.uns.get(key, {})
        if stored.get("fingerprint") == fingerprint:
            connectivities, distances = (
                adata.obsp.get(stored[f"{matrix}_key"]) for matrix in _MATRICES
            )
            if connectivities is not None and distances is not None:
                return restore_graph(z, connectivities, distances, stored["params"])
    with stage(f"neighbours of {len(z):,} cells"):
        graph = scanpy_graph(z, seed=seed)
    for matrix in _MATRICES:
        adata.obsp[f"{GRAPH_KEY}_{matrix}"] = graph.obsp[matrix]
    # in scanpy's own layout, so that its tools take it as neighbors_key
    adata.uns[GRAPH_KEY] = {
        **{f"{matrix}_key": f"{GRAPH_KEY}_{matrix}" for matrix in _MATRICES},
        "params": graph.uns["neighbors"]["params"] | {"use_rep": rep},
        "fingerprint": fingerprint,
    }
    return graph


def kept_graph(adata: AnnData) -> dict[str, dict[str, Any]]:
    """The neighbour graph of `adata` under the names that scanpy's tools look at by default.

    Returns:
        What to put into ``obsp`` and ``uns``; both empty where there is no graph.
    """
    if GRAPH_KEY not in adata.uns:
        return {"obsp": {}, "uns": {}}
    names = {f"{matrix}_key": matrix for matrix in _MATRICES}
    return {
        "obsp": {matrix: adata.obsp[f"{GRAPH_KEY}_{matrix}"] for matrix in _MATRICES},
        "uns": {_SCANPYS: {**adata.uns[GRAPH_KEY], **names}},
    }


def umap(adata: AnnData, seed: int = 0) -> None:
    """Maps `obsm["X_concerto"]` to two dimensions, into `adata.obsm["X_umap"]` (float32 [n, 2]).

    UMAP of the graph of 15 nearest neighbours by Euclidean distance, as in the Concerto paper.
    Fewer than 3 cells are put on a line. Of more than 200,000 cells a sketch of 50,000 is mapped
    (`sketch`), and each other cell lies at the weighted mean of the 5 of these nearest to it.

    Args:
        adata: Cells; changed in place.
        seed: Seed of the layout.

    Raises:
        InputError: No such embedding, or it is not finite.

    Reference:
        McInnes, Healy and Melville, "UMAP", arXiv:1802.03426 (2018).
    """
    rep = "X_concerto"
    z = embedding_of("AnnData", adata, rep)
    if len(z) < 3:
        adata.obsm["X_umap"] = np.stack([np.arange(len(z)), np.zeros(len(z))], 1).astype("f4")
        return
    graph = neighbour_graph(adata, rep, z, seed)
    with stage(f"UMAP of {len(z):,} cells"):
        if len(z) > MANY_CELLS:
            found = _by_sketch(graph, z, seed)
        else:
            found = _layout(graph, seed)
    adata.obsm["X_umap"] = np.asarray(found, np.float32)


def _layout(graph: AnnData, seed: int) -> np.ndarray:
    """UMAP of all cells of a graph [n, 2]."""
    if graph.n_obs <= _FEW_ENOUGH:
        return umap_layout(graph, seed)
    import scanpy as sc

    sc.tl.umap(graph, random_state=seed)
    return graph.obsm["X_umap"]


def sketch(graph: AnnData, size: int, seed: int) -> np.ndarray:
    """Some of many cells, rare types among them: from all fine groups equally many.

    Groups are Leiden clusters of the graph, so that of a type of few cells all are taken, where a
    random sample would have lost most of them.

    Args:
        graph: Cells with their neighbour graph, from `scanpy_graph`.
        size: Number of cells to take.
        seed: Of the groups and of the choice among their cells.

    Returns:
        Positions of the cells [size], ascending.
    """
    order = np.random.default_rng(seed).permutation(graph.n_obs)
    turn = place_in_group(leiden(graph, _FINE, seed)[order])
    return np.sort(order[np.argsort(turn, kind="stable")[:size]])


def _by_sketch(graph: AnnData, z: np.ndarray, seed: int) -> np.ndarray:
    """UMAP of a sketch, in which the other cells lie between their nearest [n, 2]."""
    chosen = sketch(graph, SKETCH_CELLS, seed)
    some = np.ascontiguousarray(z[chosen], np.float32)
    xy = _layout(scanpy_graph(some, seed=seed), seed)
    near, distance = ApproximateSearch(some, seed=seed).search(z, _PLACED_BY)
    # By how much farther than the nearest, as UMAP weighs neighbours.
    beyond = distance - distance[:, :1]
    weight = np.exp(-beyond / np.maximum(beyond.mean(axis=1, keepdims=True), 1e-12))
    found = np.einsum("nk,nkd->nd", weight / weight.sum(axis=1, keepdims=True), xy[near])
    found[chosen] = xy
    return found
