"""How well clusters are told from each other by genes that were not looked at to tell them."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

#: Genes that are looked at, the most variable ones; how often these are halved; parts of the cells.
_GENES, _HALVINGS, _FOLDS = 2_000, 2, 5
#: Clusters near to a cluster that it is compared with.
_NEAR = 3
#: Cells that a cluster has at least for anything to be said of it.
FEWEST = 5


def cluster_support(
    values: sp.csr_matrix, codes: np.ndarray, centers: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Tells of each cluster how well it is told from the one that it is told from least.

    Clusters always differ in the values that they were found in, also where one cell type was cut
    in two. So genes are halved. In each half by itself cells are told apart, by a classifier that
    learned the two clusters from other cells. What the halves agree on beyond chance is no noise,
    as that of one gene is independent of that of others.

    Deep cells differ from shallow ones in all genes. What depth (the number of genes seen) does
    within clusters is taken out first, so that cells cut by depth have no support.

    The figure is the area under the ROC curve by which one half tells what the other half says:
    1 for cell types, about 0.5 for clusters that nothing sets apart. Clusters of
    few hundred cells may have up to 0.65 by chance, as each cell has a part in how others are
    clustered.

    Args:
        values: Log-normalized values of cells [n, G].
        codes: Cluster of each cell [n], 0 to C - 1; a sample of their cells is enough.
        centers: Where each cluster lies in the embedding [C, d]; it is compared with the three
            that lie nearest.
        seed: Seed of halves and parts.

    Returns:
        Support [C], and the cluster that it is told from least, int64 [C]. NaN and -1 for a
        cluster of fewer than five cells, or without another of as many.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> codes = np.repeat([0, 1, 2], 60)
    >>> means = np.where(np.arange(200) % 2 == (codes == 2)[:, None], 1.0, 2.0)
    >>> support, nearest = cluster_support(
    ...     sp.csr_matrix(rng.normal(means)), codes, np.array([[0.0], [0.1], [5.0]]))
    >>> nearest[:2].tolist(), (support > 0.9).tolist()
    ([1, 0], [False, False, True])

    Reference:
        Neufeld, Gao, Popp, Battle and Witten, "Inference after latent variable estimation for
        single-cell RNA sequencing data", Biostatistics 25 (2024): the problem, and splitting as
        its solution.
    """
    rng = np.random.default_rng(seed)
    depth = np.log1p(np.diff(values.indptr))
    n_clusters = len(centers)
    support, nearest = np.full(n_clusters, np.nan), np.full(n_clusters, -1)
    large = np.flatnonzero(np.bincount(codes, minlength=n_clusters) >= FEWEST)
    if len(large) < 2:
        return support, nearest
    mean = np.asarray(values.mean(axis=0)).ravel()
    variance = np.asarray(values.power(2).mean(axis=0)).ravel() - mean**2
    genes = np.sort(np.argsort(-variance, kind="stable")[:_GENES])
    x = values[:, genes].toarray()
    halves = np.stack([rng.permutation(len(genes)) % 2 == 0 for _ in range(_HALVINGS)])
    fold = np.empty(len(codes), np.int64)
    for code in large:
        own = np.flatnonzero(codes == code)
        fold[own] = rng.permutation(len(own)) % _FOLDS
    apart = np.linalg.norm(centers[large, np.newaxis] - centers[large], axis=-1)
    np.fill_diagonal(apart, np.inf)
    known: dict[tuple[int, int], float] = {}
    for i, code in enumerate(large):
        for j in np.argsort(apart[i], kind="stable")[: min(_NEAR, len(large) - 1)]:
            pair = (min(code, large[j]), max(code, large[j]))
            if pair not in known:
                rows = np.flatnonzero(np.isin(codes, pair))
                known[pair] = _agreement(
                    x[rows], codes[rows] == pair[0], fold[rows], halves, depth[rows]
                )
            if not known[pair] >= support[code]:  # also where that is not known yet
                support[code], nearest[code] = known[pair], large[j]
    return np.maximum(support, 0.5), nearest


def _agreement(
    x: np.ndarray, first: np.ndarray, fold: np.ndarray, halves: np.ndarray, depth: np.ndarray
) -> float:
    """Mean area under the ROC curve by which halves of the genes tell what the others say."""
    areas = []
    for half in halves:
        one, other = (
            _without(_scores(x[:, genes], first, fold), depth, first) for genes in (half, ~half)
        )
        areas += [_area(one, other, first.sum()), _area(other, one, first.sum())]
    return float(np.mean(areas))


def _scores(x: np.ndarray, first: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """How much cells [n] are of the first of two clusters, by what other parts of the cells say.

    Diagonal discriminant analysis; 0.5 at the center of the first, -0.5 at that of the other.
    """
    score = np.empty(len(x))
    for part in np.unique(fold):
        of = fold == part
        learned = [x[~of & (first == which)] for which in (True, False)]
        means = [cells.mean(axis=0) for cells in learned]
        spread = sum(cells.var(axis=0) for cells in learned)
        weight = (means[0] - means[1]) / (spread + spread.mean() + 1e-12)
        length = max(float(weight @ (means[0] - means[1])), 1e-12)
        score[of] = (x[of] - (means[0] + means[1]) / 2) @ weight / length
    return score


def _without(score: np.ndarray, depth: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Scores [n] without what depth [n] does to them within a cluster: both halves have it."""
    terms = np.stack([depth, depth**2], axis=1)
    x, y = terms.copy(), score.copy()
    for own in (first, ~first):
        x[own] -= x[own].mean(axis=0)
        y[own] -= y[own].mean()
    slope = np.linalg.lstsq(x, y, rcond=None)[0]
    return score - terms @ slope


def _area(score: np.ndarray, says: np.ndarray, n_first: int) -> float:
    """Area under the ROC curve by which a score tells the cells that another puts first."""
    from scipy.stats import rankdata

    first = np.argsort(-says, kind="stable")[:n_first]
    rest = len(score) - n_first
    return float((rankdata(score)[first].sum() - n_first * (n_first + 1) / 2) / (n_first * rest))
