"""One clustering of several: by the fewest disagreements, by communities, of joined networks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.metrics import agreement
from concerto_tf.metrics import consensus as fewest_disagreements
from concerto_tf.metrics.consensus import co_association
from concerto_tf.metrics.graph import leiden, scanpy_graph
from concerto_tf.numerics.unit_rows import unit_rows
from protocols.charts import strips
from protocols.data_sets import labels_of, prepare_all
from protocols.embeddings import Variant, check_numbers, check_seeds, check_training, embed_by
from protocols.report import check_folder, leave
from protocols.scores import summary

if TYPE_CHECKING:
    from anndata import AnnData

#: Resolution of Leiden, as `cluster` has it.
_RESOLUTION = 0.6
SHOWN = {"ari": "ARI", "nmi": "NMI", "clusters": "clusters"}


def consensus(
    inputs: Sequence[str | Path | AnnData],
    out: str | Path,
    *,
    label_key: str,
    source_key: str | None = None,
    layer: str | None = None,
    method: str = "contrastive-sc",
    models: int = 5,
    runs: int = 20,
    seeds: Sequence[int] = (0,),
    **training: Any,
) -> dict[str, Any]:
    """Scores ways to one clustering from several networks, and from several runs on one network.

    Each network is clustered by Leiden at resolution 0.6; `runs` are Leiden of the first network
    from half to twice that, as `concerto cluster --algorithm consensus` has it. Of either, the mean
    of the single clusterings (``one``), that with the fewest disagreements (``consensus``, the
    present way), and the communities of the co-association by Louvain (``communities``, the
    paper's). ``joined`` is Leiden of all networks' embeddings side by side.

    Args:
        inputs: Files that `convert` takes, each a data set of its own.
        out: Folder for ``table.tsv``, ``result.json``, ``figure.png``, ``records`` and ``models``.
            Called again, finished models are kept.
        label_key: Column of obs with cell types; cells without one are clustered and not scored.
        source_key: Column of obs with the sources, used in the data sets that have it.
        layer: Layer that holds the counts.
        method: One of those of `train`.
        models: Number of networks, each with a seed of its own.
        runs: Number of clusterings of the first network.
        seeds: Each is an experiment of its own.
        **training: Further arguments of `train`.

    Returns:
        What ``result.json`` holds: by data set and way the mean and the standard deviation over
        the seeds of ARI, NMI and the number of clusters, and in ``mean`` these over the data sets.

    Raises:
        InputError: A data set or an argument is unsuitable.

    Reference:
        contrastive-sc, supplement, "Unsupervised prediction ensemble" (figure S3).
    """
    import pandas as pd

    check_seeds(seeds)
    check_numbers(models=models, runs=runs, whole=True, least=2)
    network = Variant(method, method)
    check_training(training, "ensemble", chosen=[network])
    out = check_folder(out)
    records = prepare_all(
        inputs, out / "records", label_key=label_key, source_key=source_key, layer=layer
    )
    rows = []
    for name, cells in records.items():
        labels = labels_of(cells, label_key)
        known = np.array([label is not None for label in labels])
        for seed in seeds:
            places = [out / "models" / f"{name}-{seed}-{i}" for i in range(models)]
            embedded = [
                embed_by(network, cells, seed * models + i, place, {"ensemble": 1, **training})
                for i, place in enumerate(places)
            ]
            for way, clusters in _ways(embedded, runs, seed).items():
                found = [agreement(labels[known], one[known]) for one in clusters]
                row: dict[str, Any] = {"data": name, "method": way, "seed": seed}
                row |= {key: np.mean([of[key] for of in found]) for key in ("ari", "nmi")}
                rows.append({**row, "clusters": np.mean([len(np.unique(c)) for c in clusters])})
    table = pd.DataFrame(rows)
    result = {
        "seeds": list(seeds),
        "data": summary(table, ["data", "method"]),
        "mean": summary(table, ["method"], over=["seed", "data"]),
    }
    return leave(out, table, result, strips(table, "data", SHOWN))


def _ways(embedded: Sequence[np.ndarray], runs: int, seed: int) -> dict[str, list[np.ndarray]]:
    """Clusterings by the way that they are made; of ``one`` several, whose scores are averaged."""
    graphs = [scanpy_graph(z, seed) for z in embedded]
    of_models = [leiden(graph, _RESOLUTION, seed) for graph in graphs]
    resolutions = _RESOLUTION * np.geomspace(0.5, 2.0, runs)
    of_runs = [leiden(graphs[0], one, seed + i) for i, one in enumerate(resolutions)]
    joined = np.concatenate([unit_rows(z - z.mean(0)) for z in embedded], axis=1)
    found = {"joined": [leiden(scanpy_graph(joined, seed), _RESOLUTION, seed)]}
    for of, several in {"models": of_models, "runs": of_runs}.items():
        labels = np.stack(several, axis=1)
        found[f"{of}: one"] = several
        found[f"{of}: consensus"] = [fewest_disagreements(labels, seed=seed)[0]]
        found[f"{of}: communities"] = [communities(labels, seed)]
    return found


def communities(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Communities of the co-association graph, by Louvain.

    Cells with the same clusters in all clusterings are one node, whose edges are the sums of
    theirs: modularity is the same, and there are far fewer nodes than cells.

    Args:
        labels: Clusters of the cells in several clusterings [n, runs], codes.
        seed: Of the order of moves.

    Returns:
        Codes [n].

    Example:

    >>> communities(np.array([[0, 0, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]])).tolist()
    [0, 0, 1, 1]

    Reference:
        contrastive-sc, supplement, figure S3; Blondel et al., J. Stat. Mech. P10008 (2008).
    """
    import igraph

    groups, of_cell, size = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    weight = np.concatenate([rows for _, rows in co_association(groups)]).astype(np.float64)
    weight *= np.outer(size, size)
    np.fill_diagonal(weight, size * (size - 1) / 2)  # pairs within a node, each once
    a, b = np.nonzero(np.triu(weight))
    graph = igraph.Graph(n=len(groups), edges=np.stack([a, b], axis=1))
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = graph.community_multilevel(weights=weight[a, b])
    finally:
        igraph.set_random_number_generator(random)
    return np.array(found.membership)[of_cell.ravel()]
