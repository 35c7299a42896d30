"""How well clusters of the embedding agree with labels."""

from __future__ import annotations

import warnings

import numpy as np

from concerto_tf.metrics.checks import PerCell, labelled_cells
from concerto_tf.metrics.graph import leiden, scanpy_graph

# Resolutions of the Leiden sweep.
_RESOLUTIONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0)
# Cells clustered at most.
CLUSTER_CELLS = 20_000


def kmeans_scores(
    embedding: np.ndarray, labels: PerCell, seed: int = 0, cap: int = CLUSTER_CELLS
) -> dict[str, float]:
    """ARI and NMI of K-means at the true number of labels, each the mean of three seeds.

    Args:
        embedding: [n, d] float.
        labels: [n] names or codes, at least 2 different, none missing.
        seed: the seeds are `seed`, `seed + 1` and `seed + 2`, each with 10 starts.
        cap: more cells than this are thinned to a random sample of this size.

    Returns:
        `ari_kmeans` (1 for equal partitions, about 0 for unrelated ones) and `nmi_kmeans` (0 to
        1, normalized by the arithmetic mean of the entropies).

    Raises:
        InputError: unsuitable embedding or labels.

    Example:
        >>> import numpy as np
        >>> from concerto_tf.metrics import kmeans_scores
        >>> kmeans_scores(np.array([[0.0], [0.1], [5.0], [5.1]]), ["a", "a", "b", "b"])
        {'ari_kmeans': 1.0, 'nmi_kmeans': 1.0}
    """
    z, codes = labelled_cells(embedding, labels, cap, seed)
    each = [agreement(codes, c) for c in kmeans_partitions(z, len(np.unique(codes)), seed)]
    return {f"{key}_kmeans": float(np.mean([of[key] for of in each])) for key in ("ari", "nmi")}


def kmeans_partitions(z: np.ndarray, k: int, seed: int = 0) -> list[np.ndarray]:
    """Three K-means clusterings, of the seeds `seed`, `seed + 1` and `seed + 2`.

    Args:
        z: [n, d] float.
        k: number of clusters, at most n.
        seed: of the first; each has 10 starts.

    Returns:
        Codes [n] of each.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # fewer different points than clusters: the score says so itself
        warnings.simplefilter("ignore", ConvergenceWarning)
        seeds = [(seed + s) % 2**32 for s in range(3)]
        return [KMeans(k, n_init=10, random_state=s).fit_predict(z) for s in seeds]


def leiden_partitions(z: np.ndarray, seed: int = 0) -> dict[float, np.ndarray]:
    """The sweep: Leiden clusterings of the graph of 15 neighbours at ten resolutions.

    Args:
        z: [n, d] float, at least 2 cells.
        seed: of the neighbour search and of Leiden.

    Returns:
        Codes [n] by resolution, from 0.05 to 2.
    """
    graph = scanpy_graph(z, seed=seed)
    return {resolution: leiden(graph, resolution, seed) for resolution in _RESOLUTIONS}


def leiden_scores(
    embedding: np.ndarray, labels: PerCell, seed: int = 0, cap: int = CLUSTER_CELLS
) -> dict[str, float]:
    """ARI and NMI of the best of a sweep of Leiden clusterings.

    The graph of 15 neighbours is clustered at ten resolutions from 0.05 to 2, and the clustering
    with the highest NMI is the one reported. This is a best case: the labels choose the
    resolution. It compares embeddings, and says less about one clustering without labels.

    Args:
        embedding: [n, d] float, at least 2 cells.
        labels: [n] names or codes, at least 2 different, none missing.
        seed: of the neighbour search and of Leiden.
        cap: more cells than this are thinned to a random sample of this size.

    Returns:
        `ari_leiden` and `nmi_leiden`, both of the clustering with the best NMI.

    Raises:
        InputError: unsuitable embedding or labels.

    Reference:
        Traag, Waltman and van Eck, Scientific Reports 9:5233 (2019).
    """
    z, codes = labelled_cells(embedding, labels, cap, seed)
    each = [agreement(codes, clusters) for clusters in leiden_partitions(z, seed).values()]
    best = max(each, key=lambda scores: scores["nmi"])
    return {f"{key}_leiden": best[key] for key in ("ari", "nmi")}


def agreement(labels: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    """ARI, and the mutual information over the mean and over the larger of the entropies.

    Args:
        labels: [n] codes or names.
        clusters: [n] codes or names.

    Returns:
        `ari`; `nmi`, normalized by the arithmetic mean (CLEAR, equation 6, and Concerto);
        `nmi_max`, normalized by the maximum (CICL, equation 1).

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
