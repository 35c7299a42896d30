"""The neighbour graph of an embedding, kept with the cells so that it is computed once."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.metrics.graph import restore_graph, scanpy_graph

if TYPE_CHECKING:
    from anndata import AnnData

# Key of the neighbour graph in `uns`, and prefix of its matrices in `obsp`.
GRAPH_KEY = "concerto_neighbors"
# Key that scanpy looks at by default, and what a graph consists of.
_SCANPYS, _MATRICES = "neighbors", ("connectivities", "distances")


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
