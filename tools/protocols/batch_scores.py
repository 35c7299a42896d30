"""CLEAR's measures of batch removal: cell types kept, batches mixed, and both in one."""

from __future__ import annotations

import numpy as np

from concerto_tf.metrics.checks import PerCell, as_embedding, complete_codes, thinned
from concerto_tf.metrics.clustering import CLUSTER_CELLS, agreement, kmeans_partitions
from concerto_tf.metrics.separation import asw_label


def batch_scores(
    embedding: np.ndarray,
    labels: PerCell,
    sources: PerCell,
    seed: int = 0,
    cap: int = CLUSTER_CELLS,
) -> dict[str, float]:
    """How well cell types are kept and batches are mixed, by clusters and by silhouettes.

    Clusters are those of K-means at the number of cell types, the mean over three seeds. bARI is
    the ARI of the same clusters with the batches, and cASW and bASW are the average silhouette
    widths of cell types and of batches, over all cells and not rescaled, as printed.

    Args:
        embedding: [n, d] float.
        labels: [n] cell types, at least 2 different, none missing.
        sources: [n] batches, at least 2 different, none missing.
        seed: of samples and of K-means.
        cap: more cells than this are thinned to a random sample of this size before they are
            clustered. Silhouettes look at a sample of 5,000.

    Returns:
        `cARI`, `1-bARI`, `f1_ARI`, `cASW`, `1-bASW` and `f1_ASW`, higher being better for each;
        `f1_` is the `harmonic_mean` of the two before it. ARI and silhouettes may be below 0, so
        that `1-bARI` and `1-bASW` may exceed 1.

    Raises:
        InputError: unsuitable embedding, labels or sources.

    Example:
        >>> import numpy as np
        >>> from protocols.batch_scores import batch_scores
        >>> z = np.random.default_rng(0).normal(size=(60, 5))
        >>> z[:30] += 10
        >>> scores = batch_scores(z, ["T"] * 30 + ["B"] * 30, ["one", "two"] * 30)
        >>> scores["cARI"], round(scores["f1_ARI"], 1)
        (1.0, 1.0)

    Reference:
        CLEAR (Han et al., Briefings in Bioinformatics 2022), "CLEAR corrects batch effects
        effectively"; equations 4 to 7 of the preprint.
    """
    z = as_embedding(embedding)
    types = complete_codes(labels, len(z), "labels", least=2)
    batches = complete_codes(sources, len(z), "sources", least=2)
    chosen = thinned(len(z), cap, seed)
    clusters = kmeans_partitions(z[chosen], len(np.unique(types[chosen])), seed)
    scores: dict[str, float] = {}
    for measure, of_types, of_batches in (
        (
            "ARI",
            np.mean([agreement(types[chosen], c)["ari"] for c in clusters]),
            np.mean([agreement(batches[chosen], c)["ari"] for c in clusters]),
        ),
        ("ASW", asw_label(z, types, seed), asw_label(z, batches, seed)),
    ):
        scores[f"c{measure}"] = float(of_types)
        scores[f"1-b{measure}"] = float(1 - of_batches)
        scores[f"f1_{measure}"] = harmonic_mean(float(of_types), float(1 - of_batches))
    return scores


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b), and 0 where one of the two is not positive.

    Args:
        a: a score.
        b: another.

    Example:
        >>> harmonic_mean(0.5, 1.0), harmonic_mean(-0.1, 1.0)
        (0.666..., 0.0)
    """
    return 2 * a * b / (a + b) if min(a, b) > 0 else 0.0
