"""Offsets between sources, told apart from differences in their cell types.

Two sources, each centered by itself, lie apart where only one of them has B cells: their means
differ by the B cells too. Here sources are moved so that cells of the same type meet. Types are not
known: cells are matched across sources by mutual nearest neighbours, then by clusters. The offsets
are those of genes' values, so that a layer can hold them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from concerto_tf.numerics.components import principal_components
from concerto_tf.numerics.unit_rows import unit_rows

#: Cells that are clustered, and those of them whose neighbours are looked at, at most: offsets of
#: sources are means, which need no more.
_MOST_CELLS, _MOST_MATCHED = 10_000, 4_000
_NEIGHBOURS = 10
#: How alike cells of two sources have to be, as a share of how alike neighbours in one source are.
_ALIKE = 0.7
#: Pairs of cells that the means of two sources count as, in case that they have no others.
_WHOLE = 2.0
_MOST_CLUSTERS, _CELLS_PER_CLUSTER = 50, 20
#: Cells of a source in a cluster beyond which more of them give it no more weight; and what a
#: source needs at least for a factor and an offset of its own.
_ENOUGH = 20
#: Cells that say that a source is not off: what a few cells say hardly counts.
_PRIOR = 50.0
_MATCHED_ROUNDS, _CLUSTERED_ROUNDS = 2, 2
#: Of the least squares, which converge quickly where sources share clusters.
_SWEEPS = 60


def matched_offsets(
    x: np.ndarray, directions: np.ndarray, source: np.ndarray, n_sources: int
) -> np.ndarray:
    """How far each source is off, by least squares over mutual nearest neighbours.

    Cells of two sources that are among each other's nearest, and nearly as alike as cells of one
    source are, are taken to be of one type: the difference of their values is that of the sources.

    Args:
        x: Values [n, F].
        directions: What cells are compared by [n, d], of length 1.
        source: Source codes [n], from 0.
        n_sources: Number of sources S.

    Returns:
        Offsets [S, F], float32. Sources without such pairs are apart as their means are.

    Reference:
        Haghverdi et al., Nature Biotechnology 36:421 (2018).
    """
    import scipy.sparse as sp

    similar = directions @ directions.T
    np.fill_diagonal(similar, -1)
    other = source[:, None] != source
    k = min(_NEIGHBOURS, len(x) - 1)

    def nearest(values: np.ndarray) -> np.ndarray:
        return -np.partition(-values, k - 1, axis=1)[:, :k]

    within = nearest(np.where(other, -1, similar))
    within = np.ma.masked_equal(within, -1).mean(1).filled(1)  # a small source has fewer than k
    least = _ALIKE * np.maximum(within, 0)
    across = np.where(other, similar, -1)
    reach = nearest(across).min(1)
    mutual = (across >= reach[:, None]) & (across >= reach)
    mutual &= across > np.minimum(least[:, None], least)
    a, b = np.nonzero(np.triu(mutual))

    ends, at = np.ones(len(a)), np.arange(len(a))
    cells = sp.csr_matrix((np.r_[ends, -ends], (np.r_[at, at], np.r_[a, b])), (len(a), len(x)))
    member = sp.csr_matrix((np.ones(len(x)), (np.arange(len(x)), source)), (len(x), n_sources))
    pairs = cells @ member
    means = _means_by_source(x, source, n_sources)
    left = (pairs.T @ pairs).toarray() + _WHOLE * (n_sources * np.eye(n_sources) - 1)
    right = (pairs.T @ cells) @ x + _WHOLE * (n_sources * means - means.sum(0))
    return np.linalg.lstsq(left, right, rcond=None)[0].astype(np.float32)


def _means_by_source(x: np.ndarray, source: np.ndarray, n_sources: int) -> np.ndarray:
    """Means [S, F], float64; of a source without cells, of all."""
    means = np.tile(x.mean(0, dtype=np.float64), (n_sources, 1))
    for code in np.unique(source):
        means[code] = x[source == code].mean(0)
    return means


def fine_clusters(z: np.ndarray, seed: int) -> np.ndarray:
    """Small clusters of cells, more than there are cell types: codes [n] by K-means.

    Args:
        z: What cells are compared by [n, d], of 2 cells or more.
        seed: Seed of K-means.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    n_clusters = int(np.clip(len(z) // _CELLS_PER_CLUSTER, 2, _MOST_CLUSTERS))
    with warnings.catch_warnings():  # fewer clusters, where cells are the same, will do
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(n_clusters, n_init=3, random_state=seed % 2**32).fit_predict(z)


def clustered_offsets(
    x: np.ndarray, source: np.ndarray, cluster: np.ndarray, n_sources: int, prior: float = _PRIOR
) -> np.ndarray:
    """How far each source is off, by least squares over the clusters that it shares with others.

    A cell of cluster c from source s is taken to be at m_c + b_s.

    Args:
        x: Values [n, F].
        source: Source codes [n], from 0.
        cluster: Cluster codes [n], from 0.
        n_sources: Number of sources S.
        prior: Number of cells that say of each source that it is not off.

    Returns:
        Offsets b [S, F], float32; 0 of a source that shares no cluster.

    Example:

    The second source lacks the first cluster and has 1 more of everything. Its mean is 2.3 more.

    >>> import numpy as np
    >>> x = np.array([[0.0], [0.0], [2.0], [3.0], [3.0]])
    >>> b = clustered_offsets(x, np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 1]), 2, prior=0)
    >>> round(float(b[1, 0] - b[0, 0]), 3)
    1.0
    """
    import scipy.sparse as sp

    n_clusters = cluster.max() + 1
    member = sp.csr_matrix(
        (np.ones(len(x), np.float32), (cluster * n_sources + source, np.arange(len(x)))),
        (n_clusters * n_sources, len(x)),
    )
    count: np.ndarray = np.asarray(member.sum(1), np.float64).ravel()
    mean = np.asarray(member @ x, np.float64) / np.maximum(count, 1)[:, None]
    count, mean = count.reshape(n_clusters, n_sources), mean.reshape(n_clusters, n_sources, -1)
    shared = (count > 0).sum(1) > 1
    weight, mean = np.minimum(count[shared], _ENOUGH), mean[shared]
    of_source = np.einsum("cs,csf->sf", weight, mean)
    of_cluster = np.einsum("cs,csf->cf", weight, mean)
    by_source = np.maximum(weight.sum(0) + prior, 1e-9)[:, None]
    by_cluster = weight.sum(1)[:, None]
    offsets = np.zeros((n_sources, x.shape[1]))
    for _ in range(_SWEEPS):  # alternating least squares
        center = (of_cluster - weight @ offsets) / by_cluster
        offsets = (of_source - weight.T @ center) / by_source
    return offsets.astype(np.float32)


@dataclass(frozen=True)
class Comparison:
    """How cells are compared across sources.

    Attributes:
        epsilon: Added to variances where values are standardized.
        clip: Largest absolute value after that; None for no limit.
        components: Principal components that cells are compared by.
        seed: Seed of components and clusters.
    """

    epsilon: float = 0.01
    clip: float | None = 10.0
    components: int = 50
    seed: int = 0


def source_offsets(
    x: np.ndarray, source: np.ndarray, n_sources: int, by: Comparison
) -> np.ndarray | None:
    """How far each source is off, estimated without knowing cell types.

    Args:
        x: Values [n, F] of cells in random order; the first 10,000 are looked at.
        source: Source codes [n], from 0.
        n_sources: Number of sources S.
        by: How cells are compared.

    Returns:
        Offsets [S, F], float32. None where there is nothing to align: all cells are of one source,
        or some belong to none of the S.
    """
    named = np.unique(source)
    if len(named) < 2 or named[0] < 0 or named[-1] >= n_sources:
        return None
    return _offsets(x[:_MOST_CELLS], source[:_MOST_CELLS], n_sources, by)


def _offsets(x: np.ndarray, source: np.ndarray, n_sources: int, by: Comparison) -> np.ndarray:
    """What `source_offsets` gives, of cells of several sources."""
    offsets = np.zeros((n_sources, x.shape[1]), np.float32)
    for turn in range(_MATCHED_ROUNDS + _CLUSTERED_ROUNDS):
        rest = x - offsets[source]
        y = (rest - rest.mean(0)) / np.sqrt(rest.var(0) + by.epsilon)
        if by.clip is not None:
            np.clip(y, -by.clip, by.clip, out=y)
        loadings, _ = principal_components(y, by.components, by.seed, denoise=0.5)
        if not loadings.shape[1]:  # nothing that cells could be compared by: each is centered
            return offsets if turn else _means_by_source(x, source, n_sources).astype(np.float32)
        z = unit_rows((y - y.mean(0)) @ loadings)
        if turn < _MATCHED_ROUNDS:
            few = slice(_MOST_MATCHED)
            offsets = matched_offsets(x[few], z[few], source[few], n_sources)
        else:
            cluster = fine_clusters(z, by.seed + turn)
            offsets += clustered_offsets(x - offsets[source], source, cluster, n_sources)
    return offsets


def modality_offsets(
    xs: list[np.ndarray], source: np.ndarray, n_sources: int, by: Comparison
) -> list[np.ndarray | None]:
    """How far each source is off in each modality; see `source_offsets`.

    Where not all cells have all modalities, the first one helps with each of the others, if enough
    cells of all sources that have the other have both.

    Args:
        xs: Values [n, features] by modality, of cells in random order; NaN in the rows of the
            cells that lack it.
        source: Source codes [n], from 0.
        n_sources: Number of sources S.
        by: How cells are compared.

    Returns:
        Offsets [S, features] by modality, or None for each.
    """
    if len(xs) == 1:
        return [source_offsets(xs[0], source, n_sources, by)]
    if source.min(initial=0) < 0:  # cells of none of the sources
        return [None] * len(xs)
    has = [~np.isnan(x[:, 0]) for x in xs]
    if np.all(has):  # of which it is found for all modalities at once
        together = np.concatenate([x[:_MOST_CELLS] for x in xs], axis=1)
        offsets = source_offsets(together, source[:_MOST_CELLS], n_sources, by)
        if offsets is None:
            return [None] * len(xs)
        return [*np.split(offsets, np.cumsum([x.shape[1] for x in xs])[:-1], axis=1)]
    found = []
    for x, own in zip(xs, has, strict=True):
        both = own & has[0]
        enough = all(
            (source[both] == code).sum() >= min(_ENOUGH, (source[own] == code).sum())
            for code in np.unique(source[own])
        )  # a source that were left out would be taken for one that is not off
        beside = [xs[0]] if x is not xs[0] and enough else []
        rows = np.flatnonzero(both if beside else own)[:_MOST_CELLS]
        together = np.concatenate([part[rows] for part in (*beside, x)], axis=1)
        offsets = source_offsets(together, source[rows], n_sources, by)
        found.append(offsets if offsets is None else offsets[:, -x.shape[1] :])
    if all(offsets is None for offsets in found):
        return found
    none = [np.zeros((n_sources, x.shape[1]), np.float32) for x in xs]
    return [a if b is None else b for a, b in zip(none, found, strict=True)]


class Aligned(NamedTuple):
    """Values without the offsets of sources, and what a normalization needs to give them.

    Attributes:
        x: The values [n, F], centered and divided by their standard deviation.
        scale: What they were divided by [F].
        factor: Factor of each source, applied after a normalization by its own statistics
            [S, F]; 1 for a source with fewer than 20 cells.
        offset: Offset of each source, added after the factor [S, F]; 0 likewise.
    """

    x: np.ndarray
    scale: np.ndarray
    factor: np.ndarray
    offset: np.ndarray


def align(
    x: np.ndarray,
    source: np.ndarray,
    offsets: np.ndarray,
    epsilon: float,
    views: np.ndarray | None = None,
) -> Aligned:
    """Removes the offsets of sources, but not the differences between their cell types.

    Args:
        x: Values [n, F].
        source: Source codes [n].
        offsets: [S, F].
        epsilon: Added to variances.
        views: Views of the first cells [at most n, F], where the statistics of sources will be
            those of views and not of whole cells.

    Returns:
        The values, and the factor and the offset of each source that lead to them after a
        normalization within sources.
    """
    views = x if views is None else views
    rest = x.copy()  # changed in place: a sample of cells takes 400 MB
    for code in np.unique(source):
        rest[source == code] -= offsets[code]
    center, scale = rest.mean(0), np.sqrt(rest.var(0) + epsilon)
    factor, offset = np.ones_like(offsets), np.zeros_like(offsets)
    for code in np.unique(source):
        own = views[source[: len(views)] == code]
        if len(own) < _ENOUGH:
            continue
        factor[code] = np.sqrt(own.var(0) + epsilon) / scale
        offset[code] = (own.mean(0) - offsets[code] - center) / scale
    rest -= center
    rest /= scale
    return Aligned(rest, scale, factor, offset)
