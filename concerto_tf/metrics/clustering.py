"""How well clusters of the embedding agree with labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from concerto_tf.metrics.inputs import as_codes, as_embedding, complete, thinned
from concerto_tf.metrics.neighbours import leiden, scanpy_graph

# Resolutions of the Leiden sweep.
RESOLUTIONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0)
# Cells clustered at most.
CLUSTER_CELLS = 20_000


def kmeans_scores(
    embedding: np.ndarray, labels: Sequence, seed: int = 0, cap: int = CLUSTER_CELLS
) -> dict[str, float]:
    """ARI and NMI of K-means at the true number of labels, each the mean of three seeds.

    Args:
        embedding: [n, d] float.
        labels: [n] names or codes, at least 2 different, none missing.
        seed: the seeds are `seed`, `seed + 1` and `seed + 2`, each with 10 starts.
        cap: more cells than this are thinned to a random sample of this size.

    Returns:
        `ari_kmeans` (1 for equal partitions, about 0 for unrelated ones) and `nmi_kmeans` (0 to
        1, normalised by the arithmetic mean of the entropies).

    Raises:
        InputError: unsuitable embedding or labels.

    Example:
        >>> import numpy as np
        >>> from concerto_tf.metrics import kmeans_scores
        >>> kmeans_scores(np.array([[0.0], [0.1], [5.0], [5.1]]), ["a", "a", "b", "b"])
        {'ari_kmeans': 1.0, 'nmi_kmeans': 1.0}
    """
    z, codes = _thinned(embedding, labels, seed, cap)
    clusters = kmeans_partitions(z, len(np.unique(codes)), seed)
    ari, nmi = np.mean([_agreement(codes, c) for c in clusters], axis=0)
    return {"ari_kmeans": float(ari), "nmi_kmeans": float(nmi)}


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


def leiden_scores(
    embedding: np.ndarray, labels: Sequence, seed: int = 0, cap: int = CLUSTER_CELLS
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
    z, codes = _thinned(embedding, labels, seed, cap)
    graph = scanpy_graph(z, seed=seed)
    best_ari, best_nmi = 0.0, -1.0
    for resolution in RESOLUTIONS:
        ari, nmi = _agreement(codes, leiden(graph, resolution, seed))
        if nmi > best_nmi:
            best_ari, best_nmi = ari, nmi
    return {"ari_leiden": best_ari, "nmi_leiden": best_nmi}


def _thinned(
    embedding: np.ndarray, labels: Sequence, seed: int, cap: int
) -> tuple[np.ndarray, np.ndarray]:
    """Checked embedding and label codes of at most `cap` cells."""
    z = as_embedding(embedding)
    codes = complete(as_codes(labels, len(z), "labels", least=2), "labels")
    chosen = thinned(len(z), cap, seed)
    return z[chosen], codes[chosen]


def _agreement(labels: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """ARI and NMI."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return (
        float(adjusted_rand_score(labels, clusters)),
        float(normalized_mutual_info_score(labels, clusters)),
    )
