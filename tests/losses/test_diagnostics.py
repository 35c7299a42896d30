from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.losses import (
    Alignment,
    EffectiveRank,
    Uniformity,
    alignment,
    effective_rank,
    uniformity,
)


def unit(z: np.ndarray) -> np.ndarray:
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def test_alignment_is_the_mean_squared_distance() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 9, 4))
    want = ((unit(a) - unit(b)) ** 2).sum(1).mean()
    assert float(alignment(tf.constant(a), tf.constant(b))) == pytest.approx(want, abs=1e-12)


def test_uniformity_is_the_log_mean_potential_of_pairs() -> None:
    z = np.random.default_rng(1).normal(size=(9, 4))
    u = unit(z)
    pairs = [np.exp(-2 * ((u[i] - u[j]) ** 2).sum()) for i in range(9) for j in range(9) if i != j]
    assert float(uniformity(tf.constant(z))) == pytest.approx(np.log(np.mean(pairs)), abs=1e-12)


def test_effective_rank_is_the_participation_ratio() -> None:
    z = np.random.default_rng(2).normal(size=(50, 6)) * [5, 3, 1, 1, 0.1, 0.1]
    eigenvalues = np.linalg.eigvalsh(np.cov(z.T))
    want = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert float(effective_rank(tf.constant(z))) == pytest.approx(want, rel=1e-10)


def test_collapse_shows() -> None:
    point = tf.ones([16, 4]) + 1e-3 * tf.random.stateless_normal([16, 4], [0, 1])
    line = tf.range(-1.0, 1.0, 0.125)[:, None] * tf.ones([1, 4])
    spread = tf.random.stateless_normal([16, 4], [1, 2])
    assert float(uniformity(point)) > -0.01 > float(uniformity(spread))
    assert float(effective_rank(line)) < 1.001 < 2 < float(effective_rank(spread))


@pytest.mark.parametrize(
    ("metric", "function"),
    [
        (Alignment(), alignment),
        (Uniformity(), lambda a, b: uniformity(a)),
        (EffectiveRank(), lambda a, b: effective_rank(a)),
    ],
)
def test_metrics_average_over_minibatches(metric, function) -> None:
    batches = np.random.default_rng(3).normal(size=(3, 2, 8, 4)).astype("float32")
    for a, b in batches:
        metric.update_state(tf.constant(a), tf.constant(b))
    want = np.mean([float(function(tf.constant(a), tf.constant(b))) for a, b in batches])
    assert float(metric.result()) == pytest.approx(want, abs=1e-5)
    assert type(metric).from_config(metric.get_config()).name == metric.name
