from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.losses import nt_xent
from concerto_tf.losses.cluster_aware import ClusterAware, cluster_aware

T = 0.5
LABELS = np.array([0, 1, 0, 2, 1, 0, 2])


def sim(x: np.ndarray, y: np.ndarray) -> float:
    return x @ y / (np.linalg.norm(x) * np.linalg.norm(y))


def views(n: int = 7, d: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, d)), rng.normal(size=(n, d))


def equation_15(i: int, z: np.ndarray, other: np.ndarray, labels: np.ndarray) -> float:
    """The loss of cell i in terms of its view in z."""
    cells = range(len(z))
    same = [j for j in cells if labels[j] == labels[i]]
    different = [j for j in cells if labels[j] != labels[i]]
    above = sum(np.exp(sim(z[i], other[j]) / T) for j in same)
    above += sum(np.exp(sim(z[i], z[j]) / T) for j in same if j != i)
    below = sum(np.exp(sim(z[i], other[j]) / T) for j in different)
    below += sum(np.exp(sim(z[i], z[j]) / T) for j in different)
    return -np.log(above / below)


def equation_16(a: np.ndarray, b: np.ndarray, labels: np.ndarray) -> float:
    cells = range(len(a))
    total = sum(equation_15(i, a, b, labels) + equation_15(i, b, a, labels) for i in cells)
    return total / (2 * len(a))


def equation_14(a: np.ndarray, b: np.ndarray) -> float:
    def loss(i: int, z: np.ndarray, other: np.ndarray) -> float:
        below = sum(np.exp(sim(z[i], z[m]) / T) for m in range(len(z)) if m != i)
        below += sum(np.exp(sim(z[i], other[m]) / T) for m in range(len(z)))
        return -np.log(np.exp(sim(z[i], other[i]) / T) / below)

    return sum(loss(i, a, b) + loss(i, b, a) for i in range(len(a))) / (2 * len(a))


def mean_loss(a: np.ndarray, b: np.ndarray, labels: np.ndarray) -> float:
    return float(tf.reduce_mean(cluster_aware(tf.constant(a), tf.constant(b), tf.constant(labels))))


def test_is_the_papers_equation() -> None:
    a, b = views()
    assert mean_loss(a, b, LABELS) == pytest.approx(equation_16(a, b, LABELS), abs=1e-12)
    for i, got in enumerate(cluster_aware(tf.constant(a), tf.constant(b), tf.constant(LABELS))):
        want = (equation_15(i, a, b, LABELS) + equation_15(i, b, a, LABELS)) / 2
        assert float(got) == pytest.approx(want, abs=1e-12)


def test_is_negative_where_clusters_are_apart() -> None:
    z = np.repeat(np.eye(4)[:3], [3, 3, 1], axis=0)
    labels = np.array([0, 0, 0, 1, 1, 1, 2])
    assert mean_loss(z, z, labels) == pytest.approx(equation_16(z, z, labels), abs=1e-12)
    assert mean_loss(z, z, labels) < 0


def test_gradient_is_that_of_the_equation(numeric_gradient: Callable) -> None:
    a, b = views(5, 3)
    x, labels = tf.constant(a), LABELS[:5]
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_mean(cluster_aware(x, tf.constant(b), tf.constant(labels)))
    got = tape.gradient(loss, x).numpy()
    want = numeric_gradient(lambda z: equation_16(z, b, labels), a)
    np.testing.assert_allclose(got, want, atol=1e-7)


def test_clusters_of_one_have_their_other_view_as_positive() -> None:
    a, b = views()
    alone = np.arange(7)
    assert mean_loss(a, b, alone) == pytest.approx(equation_16(a, b, alone), abs=1e-12)


def test_one_cluster_of_all_has_nothing_to_contrast() -> None:
    for n in (1, 7):
        a, b = (tf.constant(view) for view in views(n))
        with tf.GradientTape() as tape:
            tape.watch([a, b])
            loss = cluster_aware(a, b, tf.zeros([n], tf.int32))
        np.testing.assert_array_equal(loss, np.zeros(n))
        for gradient in tape.gradient(loss, [a, b]):
            np.testing.assert_array_equal(gradient, np.zeros((n, 4)))


def test_instance_wise_loss_is_nt_xent() -> None:
    a, b = views()
    got = tf.reduce_mean(nt_xent(tf.constant(a), tf.constant(b), T))
    assert float(got) == pytest.approx(equation_14(a, b), abs=1e-12)


def test_half_precision_is_compared_in_float32() -> None:
    a, b = views(64, 16)
    labels = np.arange(64) % 5
    half = cluster_aware(tf.cast(a, tf.bfloat16), tf.cast(b, tf.bfloat16), tf.constant(labels))
    assert half.dtype == tf.float32
    assert float(tf.reduce_mean(half)) == pytest.approx(equation_16(a, b, labels), abs=0.01)


def test_keras_loss_takes_views_side_by_side() -> None:
    a, b = views()
    loss = ClusterAware()
    got = loss(LABELS, np.concatenate([a, b], axis=1).astype("float32"))
    assert float(got) == pytest.approx(equation_16(a, b, LABELS), abs=1e-5)
    assert ClusterAware.from_config(ClusterAware(0.7).get_config()).temperature == 0.7
    with pytest.raises(ValueError, match="temperature must be positive"):
        ClusterAware(-1.0)
