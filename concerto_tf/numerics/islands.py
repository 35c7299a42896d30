"""Clusters of one source each that seem to be of one cell type, and stay apart.

Sources are aligned by one offset each (`numerics.alignment`). Where one cell type alone answers to
a treatment, its cells of the two conditions still lie apart, as two islands.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np

from concerto_tf.numerics.unit_rows import unit_rows

#: Cells of a source in a cluster, below which they are not looked at, and the share of the cluster
#: that they are to be for it to be of one source (sources counted as if of one size).
_FEWEST, _ALONE = 20, 0.9
#: Cosine of two clusters, seen from the middle of all cells, below which they are no one type: a
#: type of one source alone would be taken for any other type of another source alone.
_ALIKE = 0.2


class Island(NamedTuple):
    """Two clusters that are of one source each, and each other's counterpart.

    Attributes:
        clusters: Codes of the two.
        sources: Codes of their sources.
        cells: Their numbers of cells of these.
    """

    clusters: tuple[int, int]
    sources: tuple[int, int]
    cells: tuple[int, int]


def islands(z: np.ndarray, source: np.ndarray, cluster: np.ndarray) -> list[Island]:
    """Finds clusters of one source that have a counterpart of another source, without labels.

    Of all clusters of one source they are each other's nearest by direction, and for one of them
    the other is nearest of all clusters. So a type that only one source has is left alone.

    Args:
        z: Embeddings [n, d].
        source: Source codes [n], from 0.
        cluster: Cluster codes [n], from 0.

    Returns:
        Pairs, those of most cells first.

    Example:

    The second type lies elsewhere in the second source; the third is in the first source alone.

    >>> import numpy as np
    >>> from concerto_tf.numerics.islands import islands
    >>> means = np.array([[9, 0, 0], [0, 9, 0], [0, 9, 6], [-9, -9, 0]])
    >>> cluster, source = np.repeat([0, 0, 1, 2, 3], 40), np.repeat([0, 1, 0, 1, 0], 40)
    >>> z = means[cluster] + np.random.default_rng(0).normal(size=(200, 3))
    >>> islands(z, source, cluster)
    [Island(clusters=(1, 2), sources=(0, 1), cells=(40, 40))]
    """
    count = np.zeros((cluster.max() + 1, source.max() + 1))
    np.add.at(count, (cluster, source), 1)
    share = count / np.maximum(count.sum(axis=0), 1)
    alone = share / np.maximum(share.sum(axis=1, keepdims=True), 1e-12) >= _ALONE
    of, by = np.nonzero(count >= _FEWEST)
    if len(of) < 2:
        return []
    middle = z.mean(axis=0)
    mean = [z[(cluster == c) & (source == s)].mean(axis=0) for c, s in zip(of, by, strict=True)]
    direction = unit_rows(np.stack(mean) - middle)
    cosine = direction @ direction.T
    cosine[of[:, np.newaxis] == of] = -1  # two parts of one cluster
    nearest = cosine.argmax(axis=1)
    single = np.flatnonzero(alone[of, by])
    found = []
    for a, b in combinations(single, 2):
        there, here = (single[by[single] == by[end]] for end in (b, a))
        mutual = (
            by[a] != by[b]
            and there[cosine[a, there].argmax()] == b
            and here[cosine[b, here].argmax()] == a
        )
        if mutual and cosine[a, b] >= _ALIKE and (nearest[a] == b or nearest[b] == a):
            of_both = [(int(of[i]), int(by[i]), int(count[of[i], by[i]])) for i in (a, b)]
            found.append(Island(*zip(*of_both, strict=True)))
    return sorted(found, key=lambda pair: -sum(pair.cells))


def drawn_together(
    z: np.ndarray, cluster: np.ndarray, pairs: list[Island], weight: float
) -> np.ndarray:
    """Embeddings in which the clusters of pairs lie nearer to each other.

    Args:
        z: Embeddings [n, d].
        cluster: Cluster codes [n].
        pairs: From `islands`.
        weight: Share of the way from each cluster's mean to that of both that its cells are moved.

    Returns:
        Embeddings [n, d]; cells of other clusters stay.
    """
    moved = z.copy()
    for pair in pairs:
        own = [cluster == code for code in pair.clusters]
        both = np.mean([z[cells].mean(axis=0) for cells in own], axis=0)
        for cells in own:
            moved[cells] += weight * (both - z[cells].mean(axis=0))
    return moved
