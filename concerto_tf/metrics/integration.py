"""How well cells of different sources (batches, donors, studies) are mixed in the embedding."""

from __future__ import annotations

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.metrics import scib
from concerto_tf.metrics.checks import PerCell, as_embedding, complete_codes, sample, thinned
from concerto_tf.metrics.graph import nearest_others
from concerto_tf.metrics.separation import SILHOUETTE_CELLS
from concerto_tf.metrics.within_labels import NEIGHBOUR_CELLS, accepted, kbet_per_label

#: Cells in a neighbourhood where labels are told apart (as in scib-metrics), and where not.
_K_OF_LABELS, _K = 50, 15


def asw_source(
    embedding: np.ndarray,
    sources: PerCell,
    labels: PerCell | None = None,
    seed: int = 0,
    cap: int = SILHOUETTE_CELLS,
) -> float:
    """One minus the absolute silhouette of the sources: 1 if mixed, 0 if apart.

    With labels, it is the mean within each label over its cells, then the mean over the labels
    that have cells of two sources, so that sources may differ in composition. Labels where every
    cell is a source of its own are passed over.

    Args:
        embedding: [n, d] float; distances are Euclidean.
        sources: [n] names or codes, at least 2 different, none missing.
        labels: [n] names or codes, none missing; None for a single silhouette over all cells.
        seed: of the sample.
        cap: of at most 20,000 cells, a label with more cells than this is thinned to a random
            sample of this size.

    Returns:
        A value from 0 to 1.

    Raises:
        InputError: unsuitable input, or no label with cells of two sources.

    Reference:
        Luecken et al., "Benchmarking atlas-level data integration in single-cell genomics",
        Nature Methods 19:41 (2022), batch ASW.
    """
    from sklearn.metrics import silhouette_samples

    z, codes = _checked(embedding, sources)
    groups = np.zeros(len(z), np.int64)
    if labels is not None:
        groups = complete_codes(labels, len(z), "labels")
    chosen = thinned(len(z), NEIGHBOUR_CELLS, seed)
    z, codes, groups = z[chosen], codes[chosen], groups[chosen]
    widths = []
    for group in np.unique(groups):
        cells = np.flatnonzero(groups == group)
        cells = cells[sample(len(cells), cap, seed)]
        if 2 <= len(np.unique(codes[cells])) < len(cells):
            widths.append(1.0 - np.abs(silhouette_samples(z[cells], codes[cells])).mean())
    if not widths:
        raise InputError("no label has cells of two sources: their mixing cannot be judged.")
    return float(np.mean(widths))


def kbet(
    embedding: np.ndarray,
    sources: PerCell,
    labels: PerCell | None = None,
    k: int | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    cap: int = NEIGHBOUR_CELLS,
) -> float:
    """Share of cells whose neighbourhood has the sources in the proportions of their label.

    Each neighbourhood is held against the proportions among the cells of its label by a
    chi-square test; the acceptance rate at level `alpha` is returned, the mean over labels. With
    perfectly mixed sources it is about 1 - alpha. Sources may so differ in composition, which
    without labels counts as bad mixing.

    With labels neighbours are looked for on the graph of a label's cells, as scib-metrics does
    (which computes it where it is installed): a quarter of the label's mean number of cells in a
    source, from 10 to 70. Labels with less than 10 cells or one source are passed over; a label
    that falls into many parts has a rate of 0. Without labels, neighbourhoods are held against
    the proportions among all cells, as for Concerto.

    Args:
        embedding: [n, d] float, n > 2; distances are Euclidean.
        sources: [n] names or codes, at least 2 different, none missing.
        labels: [n] names or codes, none missing; None: all cells are of one.
        k: Cells in a neighbourhood (with labels: of the graph), the cell itself being one; at most
            n. By default 50 with labels and 15 without.
        alpha: level of the test.
        seed: of the sample.
        cap: more cells than this are thinned to a random sample of this size, among which the
            neighbours are looked for.

    Returns:
        The acceptance rate, 0 to 1, higher for better mixing.

    Raises:
        InputError: unsuitable embedding, sources or labels; or no label with 10 cells of two
            sources.

    Example:
        Two types, 80/20 and 20/80 in two sources, and perfectly mixed otherwise:

        >>> import numpy as np
        >>> from concerto_tf.metrics import kbet
        >>> rng = np.random.default_rng(0)
        >>> labels = np.repeat([0, 1], 300)
        >>> sources = (rng.random(600) < np.where(labels == 0, 0.2, 0.8)).astype(int)
        >>> z = rng.normal(size=(600, 5)) + 20 * np.eye(5)[labels]
        >>> kbet(z, sources, labels) > 0.9 > 0.6 > kbet(z, sources)
        True

    Reference:
        Büttner et al., Nature Methods 16:43 (2019); per label as by Luecken et al. (2022), without
        as for Concerto (Yang et al. 2022, Methods, "kBET"; k = 15).
    """
    z, codes = _checked(embedding, sources)
    groups = None if labels is None else complete_codes(labels, len(z), "labels")
    chosen = thinned(len(z), cap, seed)
    z, codes = z[chosen], codes[chosen]
    if groups is not None:
        return kbet_per_label(z, codes, groups[chosen], k or _K_OF_LABELS, alpha)
    others = nearest_others(z, min(k or _K, len(z)) - 1)[1]
    around = np.concatenate([np.arange(len(z))[:, None], others], axis=1)
    # The sample may have lost a source of very few cells.
    return accepted(around, np.unique(codes, return_inverse=True)[1], alpha)


def ilisi(
    embedding: np.ndarray,
    sources: PerCell,
    perplexity: float = 30.0,
    seed: int = 0,
    cap: int = NEIGHBOUR_CELLS,
) -> float:
    """Effective number of sources around a cell, scaled to 0 (one) .. 1 (all equally).

    The inverse Simpson index of the sources among a cell's 3 * perplexity nearest others,
    weighted by exp(-beta * distance) with beta chosen for the given perplexity; of its values
    over cells the median, minus 1, over the number of sources minus 1.

    Args:
        embedding: [n, d] float; distances are Euclidean.
        sources: [n] names or codes, at least 2 different, none missing.
        perplexity: effective number of neighbours; reduced to (n - 1) / 3 for few cells.
        seed: of the sample.
        cap: more cells than this are thinned to a random sample of this size, among which the
            neighbours are looked for.

    Returns:
        A value from 0 to 1. Sources of unequal size cannot reach 1.

    Raises:
        InputError: unsuitable embedding or sources.

    Reference:
        Korsunsky et al., "Fast, sensitive and accurate integration of single-cell data with
        Harmony", Nature Methods 16:1289 (2019), LISI; scaled as by Luecken et al. (2022).
    """
    z, codes = _checked(embedding, sources)
    n_sources = codes.max() + 1
    chosen = thinned(len(z), cap, seed)
    z, codes = z[chosen], codes[chosen]
    k = min(int(3 * perplexity), len(z) - 1)
    distances, others = nearest_others(z, k)
    weights = perplexity_weights(distances, min(perplexity, k / 3))
    shares = _composition(codes[others], weights, n_sources)
    index = 1.0 / np.square(shares).sum(axis=1)
    return float((np.median(index) - 1.0) / (n_sources - 1.0))


def perplexity_weights(distances: np.ndarray, perplexity: float) -> np.ndarray:
    """Weights exp(-beta * distance), normalized per cell, whose entropy is log(perplexity).

    Args:
        distances: [n, k] float.
        perplexity: at most k. Where ties make it unreachable, beta runs to its bound and the tied
            nearest neighbours share the weight.

    Returns:
        [n, k] float64, rows summing to 1.
    """
    d = distances.astype(np.float64)
    d -= d.min(axis=1, keepdims=True)  # a common factor of the weights that cancels
    # in units of the mean distance, so that one range of beta serves every scale
    scale = d.mean(axis=1, keepdims=True)
    d = np.divide(d, scale, out=d, where=scale > 0)
    low, high = np.full(len(d), -30.0), np.full(len(d), 30.0)  # log2 of beta
    for _ in range(45):
        middle = (low + high) / 2
        weights = np.exp(-np.exp2(middle)[:, None] * d)
        total = weights.sum(axis=1)
        entropy = np.log(total) + np.exp2(middle) * (weights * d).sum(axis=1) / total
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    return weights / total[:, None]


def graph_connectivity(
    embedding: np.ndarray, labels: PerCell, k: int = 15, seed: int = 0, cap: int = NEIGHBOUR_CELLS
) -> float:
    """Mean over labels of the share of cells in the label's largest connected part.

    A cell leads to its nearest; only connections within the label count, and parts are connected
    where each cell leads to each other. 1 where every label hangs together. scib-metrics computes
    it where it is installed.

    Args:
        embedding: [n, d] float; distances are Euclidean.
        labels: [n] names or codes, none missing.
        k: cells in a neighbourhood, the cell itself being one, at most n.
        seed: of the sample.
        cap: more cells than this are thinned to a random sample of this size.

    Returns:
        A value above 0, at most 1.

    Raises:
        InputError: unsuitable embedding or labels.

    Reference:
        Luecken et al., Nature Methods 19:41 (2022), graph connectivity.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    z = as_embedding(embedding)
    _at_least_three(z)
    codes = complete_codes(labels, len(z), "labels")
    chosen = thinned(len(z), cap, seed)
    z, codes = z[chosen], codes[chosen]
    distances, others = nearest_others(z, min(k, len(z)) - 1)
    if scib.installed():
        table = scib.neighbours(distances, others)
        with scib.quietly() as engine:
            return float(engine.graph_connectivity(table, codes))
    cell = np.repeat(np.arange(len(z)), others.shape[1])
    same = codes[cell] == codes[others.ravel()]
    edges = (np.ones(same.sum()), (cell[same], others.ravel()[same]))
    graph = coo_matrix(edges, (len(z), len(z)))
    _, part = connected_components(graph, connection="strong")
    # parts never reach over labels, so a label's largest part is the largest count within it
    shares = [
        np.bincount(part[codes == label]).max() / (codes == label).sum()
        for label in np.unique(codes)
    ]
    return float(np.mean(shares))


def _composition(codes: np.ndarray, weights: np.ndarray, n_codes: int) -> np.ndarray:
    """Sum of weights per code in each row: [n, k] codes and weights to [n, n_codes]."""
    n = len(codes)
    places = codes + np.arange(n)[:, None] * n_codes
    return np.bincount(places.ravel(), weights.ravel(), n * n_codes).reshape(n, n_codes)


def _checked(embedding: np.ndarray, sources: PerCell) -> tuple[np.ndarray, np.ndarray]:
    """Checked embedding and source codes."""
    z = as_embedding(embedding)
    _at_least_three(z)
    return z, complete_codes(sources, len(z), "sources", least=2)


def _at_least_three(z: np.ndarray) -> None:
    if len(z) < 3:
        raise InputError(f"the embedding has {len(z)} cells: neighbourhoods need at least 3.")
