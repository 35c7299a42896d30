"""How well labels are separated in the embedding."""

from __future__ import annotations

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.metrics.checks import PerCell, as_embedding, complete_codes, labelled_cells, sample

# Cells whose pairwise distances are looked at, at most.
SILHOUETTE_CELLS = 5_000
# Cells that take part in the nearest-neighbour vote, at most.
_KNN_CELLS = 20_000
# Folds, and so the cells a label must have to take part.
FOLDS = 5


def asw_label(
    embedding: np.ndarray, labels: PerCell, seed: int = 0, cap: int = SILHOUETTE_CELLS
) -> float:
    """Average silhouette width of the labels, from -1 (wrongly placed) to 1 (well apart).

    Args:
        embedding: [n, d] float; distances are Euclidean.
        labels: [n] names or codes, none missing.
        seed: of the sample.
        cap: more cells than this are thinned to a random sample of this size.

    Returns:
        The mean silhouette over cells, not rescaled.

    Raises:
        InputError: unsuitable embedding; fewer than 2 labels; no label with 2 cells.

    Example:
        >>> import numpy as np
        >>> from concerto_tf.metrics import asw_label
        >>> round(asw_label(np.array([[0.0], [0.1], [5.0], [5.1]]), ["a", "a", "b", "b"]), 2)
        0.98

    Reference:
        Rousseeuw, Journal of Computational and Applied Mathematics 20:53 (1987).
    """
    from sklearn.metrics import silhouette_score

    z = as_embedding(embedding)
    codes = complete_codes(labels, len(z), "labels", least=2)
    chosen = sample(len(z), cap, seed)
    z, codes = z[chosen], codes[chosen]
    n_labels = len(np.unique(codes))
    if not 2 <= n_labels < len(z):
        raise InputError(
            f"the silhouette of {n_labels} labels in {len(z)} cells is not defined: it needs 2 "
            "labels and a label with 2 cells."
        )
    return float(silhouette_score(z, codes))


def knn_scores(
    embedding: np.ndarray, labels: PerCell, seed: int = 0, cap: int = _KNN_CELLS
) -> dict[str, float]:
    """How often a cell's five nearest neighbours vote for its label, in 5-fold cross-validation.

    Labels with fewer than 5 cells are left out. Neighbours are the nearest by cosine distance.

    Args:
        embedding: [n, d] float.
        labels: [n] names or codes, none missing.
        seed: of the folds and of the sample.
        cap: more cells than this are thinned to a random sample of this size.

    Returns:
        `knn_accuracy`, and `knn_macro_f1`, the mean over labels of the F1 score.

    Raises:
        InputError: unsuitable embedding; fewer than 2 labels with 5 cells.
    """
    from sklearn.metrics import f1_score
    from sklearn.model_selection import StratifiedKFold
    from sklearn.neighbors import KNeighborsClassifier

    z, codes = labelled_cells(embedding, labels, cap, seed)
    frequent = np.bincount(codes) >= FOLDS
    if frequent.sum() < 2:
        raise InputError(
            f"{int(frequent.sum())} labels have {FOLDS} cells: the nearest-neighbour vote needs 2."
        )
    keep = frequent[codes]
    z, codes = z[keep], codes[keep]
    guess = np.empty_like(codes)
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(z, codes):
        vote = KNeighborsClassifier(5, metric="cosine").fit(z[train], codes[train])
        guess[test] = vote.predict(z[test])
    return {
        "knn_accuracy": float((guess == codes).mean()),
        "knn_macro_f1": float(f1_score(codes, guess, average="macro")),
    }
