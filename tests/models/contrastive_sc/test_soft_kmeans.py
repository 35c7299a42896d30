"""The soft K-means network against its printed equations."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.models.contrastive_sc.soft_kmeans import (
    SoftKMeans,
    neighbor_kl,
    soft_assignment,
    soft_kmeans_loss,
)

pytestmark = pytest.mark.stack

B, D, K = 6, 3, 4


def inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, D)), rng.normal(size=(K, D))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return ((a - b) ** 2).sum()


def assignment(z: np.ndarray, v: np.ndarray) -> np.ndarray:
    w = np.array([[np.exp(-distance(cell, center)) for center in v] for cell in z])
    return w / w.sum(1, keepdims=True)


def kmeans_loss(z: np.ndarray, v: np.ndarray) -> float:
    w = assignment(z, v)
    return sum(w[i, r] * distance(z[i], v[r]) for i in range(len(z)) for r in range(len(v)))


def similarity(z: np.ndarray) -> np.ndarray:
    p = np.zeros((len(z), len(z)))
    for i in range(len(z)):
        for j in range(len(z)):
            if i != j:
                p[i, j] = 1 / (1 + distance(z[i], z[j]))
    return p / p.sum(1, keepdims=True)


def target(p: np.ndarray) -> np.ndarray:
    q = p**2 / p.sum(0)
    return q / q.sum(1, keepdims=True)


def kl_loss(z: np.ndarray, q: np.ndarray) -> float:
    p = similarity(z)
    off = ~np.eye(len(z), dtype=bool)
    return (q[off] * np.log(q[off] / p[off])).sum()


def slope(f, z: np.ndarray, step: float = 1e-6) -> np.ndarray:
    out = np.zeros_like(z)
    for i in np.ndindex(*z.shape):
        up, down = z.copy(), z.copy()
        up[i] += step
        down[i] -= step
        out[i] = (f(up) - f(down)) / (2 * step)
    return out


def test_losses_and_their_gradients_are_the_printed_ones() -> None:
    z, v = inputs()
    np.testing.assert_allclose(soft_assignment(z, v), assignment(z, v), atol=1e-12)
    q, x = target(similarity(z)), tf.constant(z)
    for loss_of, want in [
        (lambda x: soft_kmeans_loss(x, tf.constant(v)), lambda z: kmeans_loss(z, v)),
        (neighbor_kl, lambda z: kl_loss(z, q)),
    ]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(loss_of(x))
        assert float(loss) == pytest.approx(want(z), abs=1e-12)
        np.testing.assert_allclose(tape.gradient(loss, x), slope(want, z), atol=1e-7)


def cells(n: int = 200, apart: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    label = rng.integers(0, K, n)
    return (rng.normal(size=(n, 8)) + apart * np.eye(8)[label]).astype("f4"), label


def started(**options: float) -> SoftKMeans:
    model = SoftKMeans(K, 8, units=8, **options)
    model.start(*cells())
    return model


def test_begins_at_the_embedding_and_the_centroids() -> None:
    model, (x, label) = started(), cells()
    scale = float(tf.convert_to_tensor(model.scale))
    np.testing.assert_allclose(model.refine(x), x * scale, rtol=1e-5)
    want = np.stack([x[label == r].mean(0) for r in range(K)]) * scale
    np.testing.assert_allclose(model.centroids, want, atol=1e-5)
    within = np.cov((x * scale - want[label]).T, bias=True)
    assert np.trace(within @ within) / np.trace(within) == pytest.approx(0.5, rel=1e-4)
    np.testing.assert_allclose(model(x), assignment(x * scale, want), atol=1e-4)


def test_centroids_are_weighted_means() -> None:
    model, (x, _) = started(momentum=0.0), cells()
    model.compile(keras.optimizers.SGD(0.0))
    w, z = model(x).numpy(), model.refine(x).numpy()
    model.fit(x, batch_size=len(x), epochs=1, verbose=0)
    np.testing.assert_allclose(model.centroids, (w.T @ z) / w.sum(0)[:, None], atol=1e-3)


def test_variance_is_kept_and_gradients_know() -> None:
    model, (x, _) = started(), cells()
    total = model.refine(x).numpy().var(0).sum()
    rng = np.random.default_rng(0)
    model.change.kernel.assign(rng.normal(size=(8, 8)))
    for training in (True, False):
        z = model.refine(x, training=training).numpy()
    assert z.var(0).sum() != pytest.approx(total, rel=1e-2)  # has only begun to follow
    for _ in range(100):
        z = model.refine(x, training=True).numpy()
    assert z.var(0).sum() == pytest.approx(total, rel=1e-3)
    np.testing.assert_allclose(model.refine(x), z, rtol=1e-2, atol=1e-2)
    with tf.GradientTape() as tape:
        factor = tf.Variable(1.0)
        model.change.kernel.assign(np.zeros((8, 8)))
        z = model.refine(tf.constant(x) * factor, training=True)
        loss = tf.reduce_sum(tf.square(z - tf.reduce_mean(z, 0)))
    assert abs(float(tape.gradient(loss, factor))) < 1e-2 * float(loss)  # shrinking gains nothing


def apartness(model: SoftKMeans, x: np.ndarray, label: np.ndarray) -> float:
    """Variance within the groups as a share of all."""
    z = model.refine(x).numpy()
    return sum(z[label == r].var(0).sum() * (label == r).mean() for r in range(K)) / z.var(0).sum()


def test_training_makes_clusters_clearer_and_keeps_them() -> None:
    model, (x, label) = started(), cells()
    model.compile(keras.optimizers.Adam(1e-2))
    before = apartness(model, x, label)
    losses = model.fit(x, batch_size=50, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    after = model.predict(x, verbose=0)
    assert apartness(model, x, label) < 0.8 * before
    assert (after.argmax(1) == label).mean() > 0.95
    assert model.evaluate(x, batch_size=50, verbose=0) < losses[0]


def test_two_replicas_and_saving(strategy: tf.distribute.Strategy, tmp_path) -> None:
    x, _ = cells(40)
    with strategy.scope():
        model = started()
        model.compile("sgd", jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices(x).batch(20)
    model.fit(data, epochs=1, shuffle=False, verbose=0)
    assert np.isfinite(model.centroids).all()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="k must be a whole number"):
        SoftKMeans(0, 8)
    with pytest.raises(InputError, match="momentum must lie in"):
        SoftKMeans(2, 8, momentum=1.0)
    with pytest.raises(InputError, match="needs a cluster from 0 to 3"):
        SoftKMeans(4, 8).start(np.zeros((2, 8)), np.array([0, 4]))
