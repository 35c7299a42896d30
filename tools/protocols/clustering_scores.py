"""Clusterings of an embedding against labels, in each of the papers' conventions."""

from __future__ import annotations

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.metrics import agreement
from concerto_tf.metrics.checks import PerCell, labelled_cells, thinned
from concerto_tf.metrics.clustering import CLUSTER_CELLS, kmeans_partitions, leiden_partitions


def clustering_scores(embedding: np.ndarray, labels: PerCell, seed: int = 0) -> dict[str, float]:
    """Agreement of K-means and of Leiden with labels, of 20,000 cells at most.

    Args:
        embedding: [n, d] float, at least 2 cells.
        labels: [n] names or codes, at least 2 different, none missing.
        seed: of the sample, of K-means, of the neighbour search and of Leiden.

    Returns:
        `ari`, `nmi` and `nmi_max` (see `agreement`) of three clusterings each: `_kmeans` at the
        true number of labels, the mean of three seeds; `_leiden`, the one with the best `nmi` of
        ten resolutions from 0.05 to 2, a best case in which the labels choose; and `_leiden1` at
        resolution 1, which takes no labels.

    Raises:
        InputError: unsuitable embedding or labels.

    Example:
        >>> import numpy as np
        >>> from protocols.clustering_scores import clustering_scores
        >>> z = np.random.default_rng(0).normal(size=(60, 5))
        >>> z[:30] += 10
        >>> clustering_scores(z, ["T cell"] * 30 + ["B cell"] * 30)["nmi_max_kmeans"]
        1.0
    """
    z, codes = labelled_cells(embedding, labels, CLUSTER_CELLS, seed)
    by_resolution = {r: agreement(codes, of) for r, of in leiden_partitions(z, seed).items()}
    three = [agreement(codes, of) for of in kmeans_partitions(z, len(np.unique(codes)), seed)]
    found = {
        "kmeans": {key: float(np.mean([one[key] for one in three])) for key in three[0]},
        "leiden": max(by_resolution.values(), key=lambda scores: scores["nmi"]),
        "leiden1": by_resolution[1.0],
    }
    return {f"{key}_{way}": value for way, of in found.items() for key, value in of.items()}


def leiden_f1(embedding: np.ndarray, labels: PerCell, label: str) -> float:
    """How well one label is recovered as a Leiden cluster of its own.

    Args:
        embedding: [n, d] float, at least 2 cells.
        labels: [n] names, at least 2 different, none missing.
        label: the one that is looked for, a rare type for example.

    Returns:
        The F1 of the cluster that fits the label best, over all clusters of the sweep that
        `leiden_scores` looks at; 1 where a cluster is that label and nothing else.

    Raises:
        InputError: unsuitable embedding or labels, or no cell has the label.

    Example:
        >>> import numpy as np
        >>> from protocols.clustering_scores import leiden_f1
        >>> z = np.random.default_rng(0).normal(size=(200, 5))
        >>> z[:20] += 10
        >>> leiden_f1(z, ["rare"] * 20 + ["common"] * 180, "rare")
        1.0
    """
    named = np.asarray(labels, object) == label
    if not named.any():
        raise InputError(f"no cell has the label {label!r}: name one that is there.")
    z, _ = labelled_cells(embedding, labels, CLUSTER_CELLS, 0)
    own = named[thinned(len(named), CLUSTER_CELLS, 0)]
    best = 0.0
    for clusters in leiden_partitions(z, 0).values():
        both = np.bincount(clusters[own], minlength=clusters.max() + 1)
        best = max(best, float((2 * both / (np.bincount(clusters) + own.sum())).max()))
    return best
