"""Clusterings of an embedding, and how well they agree with labels in the papers' terms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from concerto_tf.metrics.clustering import CLUSTER_CELLS, RESOLUTIONS, kmeans_partitions
from concerto_tf.metrics.inputs import as_codes, as_embedding, complete, thinned
from concerto_tf.metrics.neighbours import leiden, scanpy_graph

#: Keys of `clustering_scores`.
SCORES = tuple(
    f"{measure}_{way}"
    for way in ("kmeans", "leiden", "leiden1")
    for measure in ("ari", "nmi", "nmi_max")
)


def agreement(labels: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    """ARI, and the mutual information over the mean and over the larger of the entropies.

    Args:
        labels: [n] codes or names.
        clusters: [n] codes or names.

    Returns:
        `ari`; `nmi`, normalised by the arithmetic mean (CLEAR, equation 6, and Concerto);
        `nmi_max`, normalised by the maximum (CICL, equation 1).

    Example:
        >>> import numpy as np
        >>> from concerto_tf.metrics import agreement
        >>> scores = agreement(np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3]))
        >>> round(scores["nmi"], 3), round(scores["nmi_max"], 3)
        (0.667, 0.5)

    Reference:
        CLEAR, equations 4 to 6; CICL, equations 1 and 2.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return {
        "ari": float(adjusted_rand_score(labels, clusters)),
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "nmi_max": float(normalized_mutual_info_score(labels, clusters, average_method="max")),
    }


def clustering_scores(
    embedding: np.ndarray, labels: Sequence, seed: int = 0, cap: int = CLUSTER_CELLS
) -> dict[str, float]:
    """Agreement of K-means and of Leiden with labels.

    Args:
        embedding: [n, d] float, at least 2 cells.
        labels: [n] names or codes, at least 2 different, none missing.
        seed: of the sample, of K-means, of the neighbour search and of Leiden.
        cap: more cells than this are thinned to a random sample of this size.

    Returns:
        `ari`, `nmi` and `nmi_max` (see `agreement`) of three clusterings each: `_kmeans` at the
        true number of labels, the mean of three seeds; `_leiden`, the one with the best `nmi` of
        ten resolutions from 0.05 to 2, a best case in which the labels choose; and `_leiden1` at
        resolution 1, which takes no labels.

    Raises:
        InputError: unsuitable embedding or labels.

    Example:
        >>> import numpy as np
        >>> from concerto_tf.metrics import clustering_scores
        >>> z = np.random.default_rng(0).normal(size=(60, 5))
        >>> z[:30] += 10
        >>> clustering_scores(z, ["T cell"] * 30 + ["B cell"] * 30)["nmi_max_kmeans"]
        1.0
    """
    z = as_embedding(embedding)
    codes = complete(as_codes(labels, len(z), "labels", least=2), "labels")
    chosen = thinned(len(z), cap, seed)
    z, codes = z[chosen], codes[chosen]
    kmeans = [agreement(codes, c) for c in kmeans_partitions(z, len(np.unique(codes)), seed)]
    graph = scanpy_graph(z, seed=seed)
    by_resolution = {r: agreement(codes, leiden(graph, r, seed)) for r in RESOLUTIONS}
    found = {
        "kmeans": {key: float(np.mean([scores[key] for scores in kmeans])) for key in kmeans[0]},
        "leiden": max(by_resolution.values(), key=lambda scores: scores["nmi"]),
        "leiden1": by_resolution[1.0],
    }
    return {f"{key}_{way}": value for way, of in found.items() for key, value in of.items()}
