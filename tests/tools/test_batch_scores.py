"""CLEAR's batch metrics against its equations written out."""

from __future__ import annotations

import numpy as np
import pytest

from concerto_tf.errors import InputError
from concerto_tf.metrics import agreement
from concerto_tf.metrics.clustering import kmeans_partitions
from protocols.batch_scores import batch_scores, harmonic_mean


def silhouette(z: np.ndarray, codes: np.ndarray) -> float:
    """CLEAR, equation 7, the mean over cells."""
    widths = []
    for i, own in enumerate(codes):
        distance = np.sqrt(((z - z[i]) ** 2).sum(axis=1))
        a = distance[(codes == own) & (np.arange(len(z)) != i)].mean()
        b = min(distance[codes == other].mean() for other in set(codes) - {own})
        widths.append((b - a) / max(a, b))
    return float(np.mean(widths))


def cells(batch_effect: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    types, batches = np.repeat([0, 1], 30), np.tile([0, 1, 2], 20)
    z = rng.normal(size=(60, 3))
    z[:, 0] += 3 * types
    z[:, 1] += batch_effect * batches
    return z.astype(np.float32), types, batches


def test_metrics_are_as_printed() -> None:
    z, types, batches = cells(1.5)
    scores = batch_scores(z, types, batches, seed=4)
    assert list(scores) == ["cARI", "1-bARI", "f1_ARI", "cASW", "1-bASW", "f1_ASW"]
    clusters = kmeans_partitions(z, 2, seed=4)  # as many as types, not as batches
    c_ari = np.mean([agreement(types, c)["ari"] for c in clusters])
    b_ari = np.mean([agreement(batches, c)["ari"] for c in clusters])
    c_asw, b_asw = silhouette(z, types), silhouette(z, batches)
    assert 0 < c_ari < 1 and 0 < b_asw  # neither is at an end, where a mistake would not show
    want = {
        "cARI": c_ari,
        "1-bARI": 1 - b_ari,
        "cASW": c_asw,
        "1-bASW": 1 - b_asw,
        "f1_ARI": 2 * (1 - b_ari) * c_ari / (1 - b_ari + c_ari),
        "f1_ASW": 2 * (1 - b_asw) * c_asw / (1 - b_asw + c_asw),
    }
    for key, value in want.items():
        assert scores[key] == pytest.approx(value, rel=1e-4), key


def test_a_batch_effect_costs_mixing() -> None:
    mixed, apart = (batch_scores(*cells(effect)) for effect in (0.0, 12.0))
    for key in ("1-bARI", "1-bASW", "f1_ARI", "f1_ASW"):
        assert apart[key] < mixed[key] - 0.1, key


def test_a_score_below_zero_leaves_nothing_to_average() -> None:
    assert harmonic_mean(-0.1, 1.05) == 0
    assert harmonic_mean(0.0, 0.0) == 0
    assert harmonic_mean(0.5, 0.25) == pytest.approx(1 / 3)


def test_one_batch_or_type_is_refused() -> None:
    z, types, batches = cells(0.0)
    with pytest.raises(InputError, match="2 different sources"):
        batch_scores(z, types, np.zeros(60, int))
    with pytest.raises(InputError, match="2 different labels"):
        batch_scores(z, np.zeros(60, int), batches)
