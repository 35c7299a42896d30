"""One clustering that agrees best with several: consensus by co-association, without its matrix.

The co-association of two cells is the share of the clusterings that put them together. Cells with
the same clusters in all clusterings are one group, and every sum of co-associations between a cell
and a set of cells follows from how many cells of the set lie in each cluster of each clustering.
So nothing of cells x cells is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from concerto_tf.errors import InputError
from concerto_tf.metrics.checks import PerCell, check_clusters

# Sweeps over all groups that improve a consensus, at most; it converges in a few.
_SWEEPS = 50
# Clusterings that the search begins from, those that agree best with the others.
_STARTS = 3


def co_association(labels: np.ndarray, block: int = 1024) -> Iterator[tuple[slice, np.ndarray]]:
    """Co-association of the cells in blocks of rows, so that memory is bounded by the block.

    Args:
        labels: [n, runs] clusters of n cells in several clusterings, names or codes.
        block: rows at a time.

    Yields:
        Rows, and their co-association with all cells [rows, n], float32: the share of the
        clusterings that put two cells together.

    Raises:
        InputError: no cells or clusterings, or a missing cluster.

    Example:
        >>> import numpy as np
        >>> from concerto_tf.metrics.consensus import co_association
        >>> labels = np.array([[0, 0], [0, 1], [1, 1]])
        >>> np.concatenate([rows for _, rows in co_association(labels)])
        array([[1. , 0.5, 0. ],
               [0.5, 1. , 0.5],
               [0. , 0.5, 1. ]], dtype=float32)

    Reference:
        contrastive-sc, supplement, "Unsupervised prediction ensemble" (figure S3).
    """
    codes = _codes(labels)
    member = _membership(codes, np.float32)
    for start in range(0, len(codes), block):
        rows = slice(start, min(start + block, len(codes)))
        yield rows, (member[rows] @ member.T).toarray() / np.float32(codes.shape[1])


def consensus(
    labels: np.ndarray, n_clusters: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The clustering that agrees best with several.

    Without ``n_clusters`` it has the largest sum of (co-association - 1/2) over the pairs of cells
    it puts together, so that the fewest pairs are decided otherwise than in the clusterings. It is
    found by moving groups of cells, from the best of the clusterings on, until no move helps. What
    is then smaller than the smallest cluster of all clusterings joins those it lies with most.

    With ``n_clusters`` it is K-means on the co-association: the squared distance of two cells is
    the share of the clusterings that tell them apart.

    Args:
        labels: [n, runs] clusters of n cells in several clusterings, names or codes.
        n_clusters: number of clusters; None leaves it to the clusterings.
        seed: of the order of moves, and of K-means.

    Returns:
        Codes [n], int64, and how sure each cell is [n], float32: its mean co-association with the
        cells of its cluster, itself among them.

    Raises:
        InputError: no cells or clusterings, a missing cluster, or more clusters than different
            cells.

    Example:
        >>> import numpy as np
        >>> from concerto_tf.metrics.consensus import consensus
        >>> labels = np.array([[0, 0, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]])
        >>> codes, sure = consensus(labels)
        >>> codes.tolist(), [round(float(one), 2) for one in sure]
        ([0, 0, 1, 1], [1.0, 1.0, 0.83, 0.83])

    Reference:
        contrastive-sc, supplement (co-association); Fred and Jain, IEEE PAMI 27:835 (2005);
        Wu et al., IEEE TKDE 27:155 (2015) for K-means.
    """
    groups = _group(_codes(labels))
    found = _majority(groups, seed) if n_clusters is None else _kmeans(groups, n_clusters, seed)
    _, found = np.unique(found, return_inverse=True)
    counts, sizes = groups.inside(found)
    sure = groups.member.multiply(counts[:, found].T).sum(1).A1 / (groups.runs * sizes[found])
    return found[groups.of_cell].astype(np.int64), sure[groups.of_cell].astype(np.float32)


@dataclass(frozen=True)
class _Groups:
    """Cells with the same clusters in all clusterings.

    Attributes:
        codes: [groups, runs] cluster of each group in each clustering.
        size: [groups] number of cells.
        of_cell: [n] group of each cell.
        member: [groups, clusters] sparse: which clusters of all clusterings a group lies in.
        runs: number of clusterings.
    """

    codes: np.ndarray
    size: np.ndarray
    of_cell: np.ndarray
    member: sparse.csr_matrix
    runs: int

    def inside(self, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cells of a clustering of the groups [groups].

        Returns:
            How many cells of each found cluster lie in each given one [clusters, found], and how
            many it has [found].
        """
        weight = sparse.csr_matrix((self.size, (np.arange(len(found)), found)))
        return (self.member.T @ weight).toarray(), np.bincount(found, self.size)

    def gain(self, found: np.ndarray) -> float:
        """Sum of (co-association - 1/2) over all ordered pairs that ``found`` puts together."""
        counts, sizes = self.inside(found)
        return float((counts**2).sum() / self.runs - (sizes**2).sum() / 2)


def _majority(groups: _Groups, seed: int) -> np.ndarray:
    """Clusters of the groups in which no move of a group to another cluster helps."""
    starts = sorted(
        (np.unique(codes, return_inverse=True)[1] for codes in groups.codes.T),
        key=groups.gain,
        reverse=True,
    )[:_STARTS]
    rng = np.random.default_rng(seed)
    return _without_crumbs(
        groups, max((_improved(groups, start, rng) for start in starts), key=groups.gain)
    )


def _improved(groups: _Groups, found: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A clustering of the groups after all moves that help."""
    found = found.copy()
    counts, sizes = groups.inside(found)
    # Room for one new cluster: a group may also leave for one of its own.
    counts, sizes = np.pad(counts, ((0, 0), (0, 1))), np.append(sizes, 0.0)
    places = groups.member.indices.reshape(-1, groups.runs)
    for _ in range(_SWEEPS):
        moved = False
        for group in rng.permutation(len(found)):
            at, size, old = places[group], groups.size[group], found[group]
            counts[at, old] -= size
            sizes[old] -= size
            # Mean of the rows = sum of the co-associations with the cells of each cluster.
            gain = counts[at].mean(axis=0) - sizes / 2
            new = int(gain.argmax())
            if gain[new] <= gain[old] + 1e-9:
                new = old
            counts[at, new] += size
            sizes[new] += size
            if new != old:
                found[group], moved = new, True
                if sizes.all():  # the empty one is taken
                    counts, sizes = np.pad(counts, ((0, 0), (0, 1))), np.append(sizes, 0.0)
        if not moved:
            break
    return _merged(groups, found)


def _merged(groups: _Groups, found: np.ndarray) -> np.ndarray:
    """A clustering after all merges of two clusters that help, the best first."""
    while True:
        _, found = np.unique(found, return_inverse=True)
        counts, sizes = groups.inside(found)
        gain = counts.T @ counts / groups.runs - np.outer(sizes, sizes) / 2
        np.fill_diagonal(gain, -np.inf)
        a, b = np.unravel_index(gain.argmax(), gain.shape)
        if len(sizes) < 2 or gain[a, b] <= 1e-9:
            return found
        found[found == b] = a


def _without_crumbs(groups: _Groups, found: np.ndarray) -> np.ndarray:
    """A clustering in which no cluster is smaller than the smallest of those given."""
    least = groups.member.T.dot(groups.size).min()
    while True:
        _, found = np.unique(found, return_inverse=True)
        counts, sizes = groups.inside(found)
        crumb = int(sizes.argmin())
        if sizes[crumb] >= least:
            return found
        own = np.flatnonzero(found == crumb)
        together = groups.member[own] @ counts / sizes
        together[:, crumb] = -1
        found[own] = together.argmax(axis=1)


def _kmeans(groups: _Groups, n_clusters: int, seed: int) -> np.ndarray:
    """K-means of the groups, weighted by their cells."""
    from sklearn.cluster import KMeans

    n_clusters = check_clusters(n_clusters, len(groups.of_cell))
    if n_clusters > len(groups.size):
        raise InputError(
            f"the number of clusters is {n_clusters}, but the clusterings tell only "
            f"{len(groups.size)} groups of cells apart; lower it",
            "n_clusters",
        )
    # Rows of two cells differ in two places per clustering that tells them apart.
    x = groups.member / np.sqrt(2 * groups.runs)
    kmeans = KMeans(n_clusters, n_init=10, random_state=seed)
    return kmeans.fit_predict(x, sample_weight=groups.size)


def _codes(labels: PerCell) -> np.ndarray:
    """Clusters as codes [n, runs], each clustering's from 0."""
    import pandas as pd

    labels = np.asarray(labels)
    if labels.ndim != 2 or not labels.size:
        raise InputError(f"the clusterings have shape {labels.shape}: cells x clusterings needed.")
    codes = np.stack([pd.factorize(column, sort=True)[0] for column in labels.T], axis=1)
    missing = int((codes < 0).any(axis=1).sum())
    if missing:
        raise InputError(
            f"{missing} of {len(codes)} cells lack a cluster in some clustering: leave them out."
        )
    return codes


def _membership(codes: np.ndarray, dtype: type = np.float64) -> sparse.csr_matrix:
    """Which cluster of each clustering a row lies in [rows, clusters of all], sparse."""
    n, runs = codes.shape
    number = codes.max(axis=0) + 1
    column = codes + np.concatenate([[0], np.cumsum(number)[:-1]])
    return sparse.csr_matrix(
        (np.ones(n * runs, dtype), column.ravel(), np.arange(n + 1) * runs),
        shape=(n, int(number.sum())),
    )


def _group(codes: np.ndarray) -> _Groups:
    unique, of_cell, size = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return _Groups(
        unique, size.astype(np.float64), of_cell.ravel(), _membership(unique), codes.shape[1]
    )
