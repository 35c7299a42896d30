"""Separation of labels."""

from __future__ import annotations

import numpy as np
import pytest

from concerto_tf.errors import InputError
from concerto_tf.metrics import asw_label, knn_scores


def silhouette(z: np.ndarray, labels: np.ndarray) -> float:
    """Average silhouette width by its definition."""
    distance = np.sqrt(np.square(z[:, None] - z[None]).sum(-1))
    widths = []
    for i, own in enumerate(labels):
        same = (labels == own) & (np.arange(len(z)) != i)
        if not same.any():
            widths.append(0.0)
            continue
        a = distance[i, same].mean()
        b = min(distance[i, labels == other].mean() for other in set(labels) - {own})
        widths.append((b - a) / max(a, b))
    return float(np.mean(widths))


def folds_vote(z: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Labels by the vote of the 5 nearest by cosine among the other folds; ties to the lowest."""
    from sklearn.model_selection import StratifiedKFold

    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    guess = np.empty_like(labels)
    for train, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(z, labels):
        for i in test:
            near = train[np.argsort(-(unit[train] @ unit[i]), kind="stable")[:5]]
            guess[i] = np.bincount(labels[near]).argmax()
    return guess


def noisy(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 120)
    return rng.normal(size=(120, 4)) + 1.2 * np.eye(4)[labels], labels


def test_asw_is_the_silhouette() -> None:
    z, labels = noisy()
    assert asw_label(z, labels) == pytest.approx(silhouette(z, labels), abs=1e-5)


def test_asw_of_extremes() -> None:
    z = np.repeat([[0.0, 0.0], [1.0, 1.0]], 10, axis=0)
    assert asw_label(z, [0] * 10 + [1] * 10) == 1.0
    assert asw_label(z, [0, 1] * 10) == pytest.approx(-0.1, abs=0.05)  # half of each with half


def test_asw_is_capped_and_seeded() -> None:
    z, labels = noisy()
    first = asw_label(z, labels, seed=1, cap=50)
    assert first == asw_label(z, labels, seed=1, cap=50)
    assert first != asw_label(z, labels, seed=2, cap=50)
    chosen = np.random.default_rng(1).permutation(120)[:50]
    assert first == pytest.approx(silhouette(z[chosen], labels[chosen]), abs=1e-5)


def test_knn_is_the_vote_of_five() -> None:
    z, labels = noisy()
    guess = folds_vote(z, labels, seed=3)
    scores = knn_scores(z, labels, seed=3)
    assert scores["knn_accuracy"] == pytest.approx((guess == labels).mean())
    f1 = []
    for label in range(3):
        hits = ((guess == label) & (labels == label)).sum()
        f1.append(2 * hits / ((guess == label).sum() + (labels == label).sum()))
    assert scores["knn_macro_f1"] == pytest.approx(np.mean(f1))
    assert 0.4 < scores["knn_accuracy"] < 0.95


def test_knn_leaves_out_rare_labels() -> None:
    z, labels = noisy()
    with_rare = knn_scores(np.concatenate([z, z[:4]]), np.concatenate([labels, [9] * 4]))
    assert with_rare == knn_scores(z, labels)


def test_knn_does_not_depend_on_the_names() -> None:
    z, labels = noisy()
    assert knn_scores(z, labels) == knn_scores(z, np.array(["a", "b", "c"])[labels])


def test_undefined_scores_are_refused() -> None:
    z, labels = noisy()
    with pytest.raises(InputError, match="silhouette of 120 labels in 120 cells"):
        asw_label(z, np.arange(120))
    with pytest.raises(InputError, match="1 labels have 5 cells"):
        knn_scores(z, [0] * 116 + [1] * 4)
    with pytest.raises(InputError, match="only 0"):
        asw_label(z, np.zeros(120, int))
