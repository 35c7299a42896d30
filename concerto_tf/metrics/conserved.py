"""What integration should keep, and what it should take away: isolated labels, source variance."""

from __future__ import annotations

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.metrics import scib
from concerto_tf.metrics.checks import PerCell, as_embedding, complete_codes, sample
from concerto_tf.metrics.separation import SILHOUETTE_CELLS


def isolated_labels(
    embedding: np.ndarray,
    sources: PerCell,
    labels: PerCell,
    seed: int = 0,
    cap: int = SILHOUETTE_CELLS,
) -> float:
    """How well the labels that fewest sources have are told from all others, from 0 to 1.

    The silhouette of these labels' cells, scaled to (s + 1) / 2: the mean over the cells of such
    a label, and the mean over these labels.

    Args:
        embedding: [n, d] float; distances are Euclidean.
        sources: [n] names or codes, at least 2 different, none missing.
        labels: [n] names or codes, at least 2 different, none missing.
        seed: Of the sample.
        cap: More cells than this are thinned, the largest labels first.

    Returns:
        A value from 0 to 1.

    Raises:
        InputError: Unsuitable input.

    Example:
        >>> import numpy as np
        >>> from concerto_tf.metrics import isolated_labels
        >>> labels = np.arange(300) // 100
        >>> z = np.random.default_rng(0).normal(size=(300, 5)) + 10 * np.eye(5)[labels]
        >>> isolated_labels(z, np.where(labels == 2, 1, np.arange(300) % 2), labels) > 0.8
        True

    Reference:
        Luecken et al., Nature Methods 19:41 (2022), isolated label silhouette; scib-metrics.
    """
    from sklearn.metrics import silhouette_samples

    z = as_embedding(embedding)
    of = complete_codes(sources, len(z), "sources", least=2)
    codes = complete_codes(labels, len(z), "labels", least=2)
    pairs = np.unique(np.stack([codes, of]), axis=1)[0]
    counts = np.bincount(pairs)
    isolated = np.flatnonzero(counts == counts.min())
    chosen = _thinned_by_label(codes, cap, seed)
    z, of, codes = z[chosen], of[chosen], codes[chosen]
    if len(np.unique(codes)) == len(codes):
        raise InputError("each cell is a label of its own: nothing to tell apart.")
    if scib.installed() and len(chosen) == len(embedding):
        with scib.quietly() as engine:
            return float(engine.isolated_labels(z, codes, of))
    widths = (silhouette_samples(z, codes) + 1.0) / 2.0
    return float(np.mean([widths[codes == label].mean() for label in isolated]))


def _thinned_by_label(codes: np.ndarray, cap: int, seed: int) -> np.ndarray:
    """Positions of at most so many cells: all of rare labels, a sample of frequent ones."""
    counts, most = np.bincount(codes), len(codes)
    while np.minimum(counts, most).sum() > cap and most > 2:
        most = max(2, int(0.9 * most))
    cells = [np.flatnonzero(codes == label) for label in range(len(counts))]
    return np.sort(np.concatenate([own[sample(len(own), most, seed)] for own in cells]))


def pcr(before: np.ndarray, after: np.ndarray, sources: PerCell) -> float:
    """Share of the variance of sources that integration takes away, from 0 to 1.

    Principal component regression: each component's variance that sources explain, weighted by
    the component's variance. Over all components that is the variance between the means of the
    sources over the whole variance, which needs no components.

    Args:
        before: [n, d] float, such as principal components of log-normalized values.
        after: Embedding [n, e] of the same cells.
        sources: [n] names or codes, at least 2 different, none missing.

    Returns:
        (before - after) / before; 0 where sources explain more than before, or nothing before.

    Raises:
        InputError: Unsuitable input.

    Example:
        >>> import numpy as np
        >>> from concerto_tf.metrics import pcr
        >>> z, sources = np.random.default_rng(0).normal(size=(200, 5)), np.arange(200) % 2
        >>> pcr(z + 3 * sources[:, None], z, sources) > 0.9
        True

    Reference:
        Büttner et al., Nature Methods 16:43 (2019); Luecken et al. (2022), PCR comparison;
        scib-metrics.
    """
    before, after = as_embedding(before), as_embedding(after)
    if len(before) != len(after):
        raise InputError(f"{len(before)} cells before integration and {len(after)} after it.")
    codes = complete_codes(sources, len(after), "sources", least=2)
    if scib.installed():
        with scib.quietly() as engine:
            return float(engine.pcr_comparison(before, after, codes, categorical=True))
    share_before, share_after = (_between(z, codes) for z in (before, after))
    if share_before <= 0:
        return 0.0
    return float(max(0.0, (share_before - share_after) / share_before))


def _between(z: np.ndarray, codes: np.ndarray) -> float:
    """Variance between the means of some groups over the whole variance."""
    z = z.astype(np.float64)
    z -= z.mean(axis=0)
    total = np.square(z).sum()
    sums = np.stack([z[codes == code].sum(axis=0) for code in range(codes.max() + 1)])
    between = (np.square(sums) / np.bincount(codes)[:, None]).sum()
    return float(between / total) if total > 0 else 0.0
