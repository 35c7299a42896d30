"""All the metrics that apply to an embedding, under the names of metrics.json."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.metrics.checks import PerCell, as_codes, as_embedding
from concerto_tf.metrics.clustering import kmeans_scores, leiden_scores
from concerto_tf.metrics.conserved import isolated_labels
from concerto_tf.metrics.integration import asw_source, graph_connectivity, ilisi, kbet
from concerto_tf.metrics.separation import FOLDS, asw_label, knn_scores
from concerto_tf.metrics.within_labels import bras, cilisi


def embedding_scores(
    embedding: np.ndarray,
    labels: PerCell | None = None,
    sources: PerCell | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Scores an embedding against labels, and by the mixing of sources.

    Cells without a label take no part in what needs labels, cells without a source none in what
    needs sources. Time and memory are bounded for any number of cells: silhouettes look at a
    random sample of 5,000 cells, everything else at one of 20,000 (so that with many more cells
    neighbourhoods are wider than in the full data).

    Args:
        embedding: [n, d] float.
        labels: [n] names or codes; None, NaN and pandas' missing values are missing.
        sources: the same for where cells come from. With a single source nothing is mixed, and
            the metrics of mixing are left out.
        seed: of samples, folds, K-means and Leiden.

    Returns:
        Those of these keys that apply. With labels: `ari_kmeans`, `nmi_kmeans`, `ari_leiden`,
        `nmi_leiden` (best of a sweep, see `leiden_scores`), `asw_label` (if a label has 2
        cells), `knn_accuracy`, `knn_macro_f1` (if 2 labels have 5 cells). With 2 or more sources
        (and 3 cells): `kbet` and `asw_source` (within labels where given), `ilisi`, and with labels
        too `cilisi`, `bras`, `isolated_labels` and `graph_connectivity`. `ilisi`, and without
        labels `kbet`, hold mixing against the sources' shares of all cells, and so count a source
        with other cell types as badly mixed.

    Raises:
        InputError: the embedding is not finite, lengths differ, or there are labels but fewer
            than 2 different ones.

    Example:
        >>> import numpy as np
        >>> from concerto_tf.metrics import embedding_scores
        >>> z = np.random.default_rng(0).normal(size=(60, 5))
        >>> z[:30] += 10
        >>> embedding_scores(z, ["T cell"] * 30 + ["B cell"] * 30)["ari_kmeans"]
        1.0
    """
    z = as_embedding(embedding)
    scores: dict[str, float] = {}
    label_codes = np.full(len(z), -1)
    if labels is not None:
        label_codes = as_codes(labels, len(z), "labels", least=2)
        scores |= _label_scores(z[label_codes >= 0], label_codes[label_codes >= 0], seed)
    if sources is not None:
        source_codes = as_codes(sources, len(z), "sources")
        scores |= _source_scores(z, source_codes, None if labels is None else label_codes, seed)
    return scores


def _label_scores(z: np.ndarray, codes: np.ndarray, seed: int) -> dict[str, float]:
    """What needs labels; all cells have one."""
    scores = kmeans_scores(z, codes, seed) | leiden_scores(z, codes, seed)
    if len(np.unique(codes)) < len(codes):
        scores["asw_label"] = asw_label(z, codes, seed)
    if (np.bincount(codes) >= FOLDS).sum() >= 2:
        scores |= knn_scores(z, codes, seed)
    return scores


def _source_scores(
    z: np.ndarray, sources: np.ndarray, labels: np.ndarray | None, seed: int
) -> dict[str, float]:
    """What needs sources; -1 marks cells without a source or label."""
    known = sources >= 0
    if known.sum() < 3 or len(np.unique(sources[known])) < 2:
        return {}
    scores: dict[str, float] = {}
    if labels is None:
        scores["asw_source"] = asw_source(z[known], sources[known], seed=seed)
        scores["kbet"] = kbet(z[known], sources[known], seed=seed)
        return scores | {"ilisi": ilisi(z[known], sources[known], seed=seed)}
    labelled = labels >= 0
    both = known & labelled
    scores["ilisi"] = ilisi(z[known], sources[known], seed=seed)
    within: dict[str, Callable[..., float]] = {
        "asw_source": asw_source,
        "kbet": kbet,
        "cilisi": cilisi,
        "bras": bras,
        "isolated_labels": isolated_labels,
    }
    for key, metric in within.items():
        with contextlib.suppress(InputError):  # no label has cells of two sources
            scores[key] = metric(z[both], sources[both], labels=labels[both], seed=seed)
    if labelled.sum() >= 3:
        scores["graph_connectivity"] = graph_connectivity(z[labelled], labels[labelled], seed=seed)
    return scores
