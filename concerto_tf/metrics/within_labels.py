"""How well sources are mixed within each label, so that sources may differ in composition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.metrics import scib
from concerto_tf.metrics.checks import PerCell, as_embedding, complete_codes, thinned
from concerto_tf.metrics.graph import nearest_others
from concerto_tf.metrics.separation import SILHOUETTE_CELLS

#: Cells among which neighbours are looked for, at most.
NEIGHBOUR_CELLS = 20_000
#: Cells that a label has at least to be judged, as in Open Problems.
_LEAST = 10


def cilisi(
    embedding: np.ndarray,
    sources: PerCell,
    labels: PerCell,
    neighbours: int = 30,
    seed: int = 0,
    cap: int = NEIGHBOUR_CELLS,
) -> float:
    """Effective number of sources around a cell among cells of its label, from 0 to 1.

    The inverse Simpson index of the sources of a cell's nearest others of its own label, minus 1,
    over the number of the label's sources minus 1; the mean over the cells of all labels with at
    least 10 cells and two sources.

    Args:
        embedding: [n, d] float; distances are Euclidean.
        sources: [n] names or codes, at least 2 different, none missing.
        labels: [n] names or codes, none missing.
        neighbours: Nearest others, each of one weight; all others in a smaller label.
        seed: Of the sample.
        cap: More cells than this are thinned to a random sample of this size.

    Returns:
        A value from 0 (each cell among cells of one source) to 1 (all sources of a label in equal
        shares). Sources of unequal size within a label cannot reach 1.

    Raises:
        InputError: Unsuitable input, or no label with 10 cells of two sources.

    Example:
        >>> import numpy as np
        >>> from concerto_tf.metrics import cilisi
        >>> z = np.random.default_rng(0).normal(size=(400, 5))
        >>> cilisi(z, np.arange(400) % 2, np.arange(400) // 200) > 0.9
        True

    Reference:
        Andreatta et al., Nature Communications 15:872 (2024), CiLISI, as Open Problems' batch
        integration task computes it.
    """
    found = []
    for z, of in _groups(*_of_labels(embedding, sources, labels, seed, cap)):
        near = of[nearest_others(z, min(neighbours, len(z) - 1))[1]]
        shares = np.stack([(near == source).mean(axis=1) for source in np.unique(of)], axis=1)
        found.append((1.0 / np.square(shares).sum(axis=1) - 1.0) / (shares.shape[1] - 1.0))
    return float(np.concatenate(found).mean())


def bras(
    embedding: np.ndarray,
    sources: PerCell,
    labels: PerCell,
    seed: int = 0,
    cap: int = SILHOUETTE_CELLS,
) -> float:
    """Batch removal adapted silhouette: 1 where sources are mixed within labels, 0 where apart.

    Within a label, a cell's mean cosine distance to the cells of its own source is held against
    that to the cells of all other sources. One minus the absolute silhouette, its mean over the
    cells of a label, and the mean over the labels with several sources.

    Args:
        embedding: [n, d] float.
        sources: [n] names or codes, at least 2 different, none missing.
        labels: [n] names or codes, none missing.
        seed: Of the sample.
        cap: A label with more cells than this is thinned to a random sample of this size.

    Returns:
        A value from 0 to 1.

    Raises:
        InputError: Unsuitable input, or no label with cells of two sources.

    Example:
        >>> import numpy as np
        >>> from concerto_tf.metrics import bras
        >>> z = np.random.default_rng(0).normal(size=(400, 5))
        >>> bras(z, np.arange(400) % 2, np.arange(400) // 200) > 0.95
        True

    Reference:
        Rautenstrauch and Ohler, Nature Biotechnology (2025), BRAS; scib-metrics.
    """
    kept = []
    checked = _of_labels(embedding, sources, labels, seed, NEIGHBOUR_CELLS)
    for z, of in _groups(*checked, least=2):
        chosen = thinned(len(z), cap, seed)
        z, of = z[chosen], of[chosen]
        if 2 <= len(np.unique(of)) < len(of):
            kept.append((z, of))
    if not kept:
        raise InputError("no label has cells of two sources: their mixing cannot be judged.")
    if scib.installed():
        groups = np.repeat(np.arange(len(kept)), [len(z) for z, _ in kept])
        z, of = (np.concatenate(part) for part in zip(*kept, strict=True))
        with scib.quietly() as engine:
            return float(engine.bras(z, groups, of))
    return float(np.mean([1.0 - np.abs(_silhouette(z, of)).mean() for z, of in kept]))


def _silhouette(z: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Silhouettes [n] by cosine distance, against the cells of all other codes together."""
    z = z.astype(np.float64)
    z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    _, codes = np.unique(codes, return_inverse=True)
    # The mean of cosines with some cells is the cosine with their mean.
    sums = np.stack([z[codes == code].sum(axis=0) for code in range(codes.max() + 1)])
    counts = np.bincount(codes)
    to = counts - z @ sums.T  # sums of the distances to the cells of each code; to itself 0
    own = to[np.arange(len(z)), codes]
    rest = len(z) - counts[codes]
    alone = counts[codes] == 1
    within = own / np.maximum(counts[codes] - 1, 1)
    between = (to.sum(axis=1) - own) / rest
    most = np.maximum(within, between)
    width = np.divide(between - within, most, out=np.zeros(len(z)), where=most > 0)
    return np.where(alone, 0.0, width)


def kbet_per_label(
    z: np.ndarray, sources: np.ndarray, labels: np.ndarray, k: int, alpha: float
) -> float:
    """`kbet` within each label, by neighbours on the graph of its cells; the mean over labels.

    Args:
        z: Embedding [n, d].
        sources, labels: Codes [n].
        k: Cells in a neighbourhood of the graph, the cell itself being one.
        alpha: Level of the test.

    Raises:
        InputError: No label has 10 cells of two sources.
    """
    distances, others = nearest_others(z, min(k, len(z)) - 1)
    next(_groups(z, sources, labels))  # says so if there is none
    if scib.installed():
        table = scib.neighbours(distances, others)
        with scib.quietly() as engine:
            return float(engine.kbet_per_label(table, sources, labels, alpha))
    graph = _connectivities(*scib.with_itself(distances, others))
    rates = []
    for label in np.unique(labels):
        cells = np.flatnonzero(labels == label)
        of = np.unique(sources[cells], return_inverse=True)[1]
        if len(cells) >= _LEAST and of.max() > 0:
            rates.append(_accepted_on_graph(graph[cells][:, cells], of, alpha))
    return float(np.mean(rates))


def _connectivities(indices: np.ndarray, distances: np.ndarray):  # type: ignore[no-untyped-def]
    """UMAP's symmetric weights of neighbours, sparse [n, n]."""
    from scipy.sparse import csr_matrix
    from umap.umap_ import fuzzy_simplicial_set

    n, k = indices.shape
    return csr_matrix(
        fuzzy_simplicial_set(
            np.zeros((n, 1)),
            k,
            np.random.RandomState(0),
            "precomputed",
            knn_indices=indices,
            knn_dists=distances.astype(np.float32),
        )[0]
    )


def _accepted_on_graph(graph, sources: np.ndarray, alpha: float) -> float:  # type: ignore[no-untyped-def]
    """Acceptance rate of a label; 0 where its graph falls into too many small parts."""
    from scipy.sparse.csgraph import connected_components

    k = int(np.clip(len(sources) / len(np.unique(sources)) // 4, 10, 70))
    count, part = connected_components(graph, connection="strong")
    kept = np.arange(len(sources))
    if count > 1:
        sizes = np.bincount(part)
        kept = np.flatnonzero(sizes[part] >= 3 * k)
        # The rest of a label whose sources are apart may be of one alone.
        if len(kept) < 0.75 * len(sources) or len(np.unique(sources[kept])) == 1:
            return 0.0
    try:
        z = _diffusion(graph[kept][:, kept], min(100, len(kept) - 1))
        near = nearest_others(z, min(k, len(kept) - 1))[1]
    except (ValueError, ArithmeticError):
        return 0.0
    around = np.concatenate([np.arange(len(kept))[:, None], near], axis=1)
    return accepted(around, np.unique(sources[kept], return_inverse=True)[1], alpha)


def _diffusion(graph, components: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Cells [n, components] so that Euclidean distance is diffusion distance over all times."""
    from scipy.sparse import diags
    from scipy.sparse.linalg import eigsh

    density = np.asarray(graph.sum(axis=0)).ravel()
    kernel = diags(1.0 / density) @ graph @ diags(1.0 / density)
    root = np.sqrt(np.asarray(kernel.sum(axis=0)).ravel())
    transitions = (diags(1.0 / root) @ kernel @ diags(1.0 / root)).astype(np.float64)
    values, vectors = eigsh(transitions, k=components, which="LM", v0=np.ones(graph.shape[0]))
    values = values.astype(np.float32) + np.float32(1e-8)
    with np.errstate(divide="ignore"):
        scale = np.where(values == 1, values, values / (1 - values))
    return vectors.astype(np.float32) * scale


def accepted(around: np.ndarray, sources: np.ndarray, alpha: float) -> float:
    """Share of neighbourhoods whose sources a chi-square test accepts as those of all cells.

    Args:
        around: Cells [n, k] of each neighbourhood.
        sources: Codes [n] without gaps.
        alpha: Level of the test.
    """
    from scipy.stats import chi2

    overall = np.bincount(sources) / len(sources)
    if len(overall) == 1:
        return 1.0
    expected = overall * around.shape[1]
    near = sources[around]
    observed = np.stack([(near == code).sum(axis=1) for code in range(len(overall))], axis=1)
    statistic = ((observed - expected) ** 2 / expected).sum(axis=1)
    return float((chi2.sf(statistic, len(overall) - 1) >= alpha).mean())


def _of_labels(
    embedding: np.ndarray, sources: PerCell, labels: PerCell, seed: int, cap: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Checked embedding, sources and labels of at most so many cells."""
    z = as_embedding(embedding)
    of = complete_codes(sources, len(z), "sources", least=2)
    groups = complete_codes(labels, len(z), "labels")
    chosen = thinned(len(z), cap, seed)
    return z[chosen], of[chosen], groups[chosen]


def _groups(
    z: np.ndarray, sources: np.ndarray, labels: np.ndarray, least: int = _LEAST
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Embedding and sources of each label with enough cells and two sources."""
    any_at_all = False
    for label in np.unique(labels):
        cells = labels == label
        if cells.sum() >= least and len(np.unique(sources[cells])) > 1:
            any_at_all = True
            yield z[cells], sources[cells]
    if not any_at_all:
        raise InputError(
            f"no label has {least} cells of two sources: their mixing cannot be judged."
        )
