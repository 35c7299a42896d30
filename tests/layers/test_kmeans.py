from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from concerto_tf.errors import InputError
from concerto_tf.layers.kmeans import kmeans, student_t_assignment

pytestmark = pytest.mark.stack


def groups(n: int = 240, d: int = 10, k: int = 6, apart: float = 6.0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    label = rng.integers(0, k, n)
    return rng.normal(0, apart / np.sqrt(d), (k, d))[label] + rng.normal(0, 1, (n, d)), label


def inertia(x: np.ndarray, centroids: np.ndarray) -> float:
    return ((x[:, None] - centroids[None]) ** 2).sum(-1).min(1).sum()


def test_finds_groups_that_are_there() -> None:
    x, label = groups(apart=30.0)
    for seed in range(5):
        _, clusters = kmeans(tf.constant(x), 6, seed=seed)
        assert adjusted_rand_score(label, clusters) > 0.7
    best = min(
        (kmeans(tf.constant(x), 6, seed=seed) for seed in range(5)),
        key=lambda found: inertia(x, found[0].numpy()),
    )
    assert adjusted_rand_score(label, best[1]) == 1


def test_is_about_as_good_as_that_of_scikit_learn() -> None:
    x, _ = groups(apart=3.0)
    ours = [inertia(x, kmeans(tf.constant(x), 6, steps=10, seed=s)[0].numpy()) for s in range(10)]
    theirs = [KMeans(6, n_init=1, max_iter=10, random_state=s).fit(x).inertia_ for s in range(10)]
    assert np.mean(ours) < 1.03 * np.mean(theirs)


def test_result_is_a_fixed_point_of_lloyds_algorithm() -> None:
    x, _ = groups(60, 3, 4)
    centroids, clusters = (part.numpy() for part in kmeans(tf.constant(x), 4, steps=50))
    nearest = ((x[:, None] - centroids[None]) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(clusters, nearest)
    for c in range(4):
        np.testing.assert_allclose(centroids[c], x[clusters == c].mean(0), atol=1e-10)


def test_start_draws_in_proportion_to_the_squared_distance() -> None:
    x = tf.constant([[0.0], [1.0], [3.0]], tf.float64)
    start = tf.function(lambda seed: kmeans(x, 2, steps=0, seed=seed)[0])
    n = 1200
    seen = [tuple(start(tf.constant(s, tf.int64)).numpy().ravel().round(6)) for s in range(n)]
    # First a third each; then 1 : 9, 1 : 4, 9 : 4 by squared distance.
    likely = {
        (0, 1): 1 / 10,
        (0, 3): 9 / 10,
        (1, 0): 1 / 5,
        (1, 3): 4 / 5,
        (3, 0): 9 / 13,
        (3, 1): 4 / 13,
    }
    expected = np.array([n / 3 * p for p in likely.values()])
    got = np.array([seen.count(pair) for pair in likely])
    assert got.sum() == n
    # Chi squared of 5 degrees of freedom: above 35.9 once in a million.
    assert ((got - expected) ** 2 / expected).sum() < 35.9


def test_seed_decides_inside_and_outside_xla() -> None:
    x = tf.constant(groups()[0])
    a, b = kmeans(x, 6, steps=2, seed=1), kmeans(x, 6, steps=2, seed=1)
    np.testing.assert_array_equal(a[0], b[0])
    assert not np.allclose(a[0], kmeans(x, 6, steps=2, seed=2)[0])
    compiled = tf.function(lambda x: kmeans(x, 6, steps=2, seed=1), jit_compile=True)(x)
    np.testing.assert_allclose(compiled[0], a[0], atol=1e-10)
    np.testing.assert_array_equal(compiled[1], a[1])


def test_far_from_the_origin_and_in_half_precision() -> None:
    x, label = groups(apart=30.0)
    best = [kmeans(tf.constant(x + 100_000, tf.float32), 6, seed=s) for s in range(5)]
    assert max(adjusted_rand_score(label, clusters) for _, clusters in best) == 1
    centroids, _ = kmeans(tf.cast(x, tf.bfloat16), 6)
    assert centroids.dtype == tf.float32


def test_fewer_different_cells_than_clusters() -> None:
    x = tf.constant([[1.0], [1.0], [1.0], [5.0]])
    centroids, clusters = kmeans(x, 4)
    assert set(centroids.numpy().ravel()) == {1.0, 5.0}
    np.testing.assert_array_equal(tf.gather(centroids, clusters), x)
    centroids, clusters = kmeans(tf.ones([1, 2]), 1)
    assert centroids.numpy().tolist() == [[1, 1]] and clusters.numpy().tolist() == [0]


def test_no_gradient_flows() -> None:
    x = tf.constant(groups(12, 2, 2)[0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(kmeans(x, 2)[0])
    assert tape.gradient(loss, x) is None


def test_more_clusters_than_cells() -> None:
    with pytest.raises(InputError, match="5 clusters of a minibatch of 4 cells; take a larger"):
        kmeans(tf.ones([4, 2]), 5)
    with pytest.raises(InputError, match="needs k >= 1 and steps >= 0, not 0 and 10"):
        kmeans(tf.ones([4, 2]), 0)


@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_assignment_is_equation_8(alpha: float) -> None:
    rng = np.random.default_rng(0)
    h, c = rng.normal(5, 1, (7, 3)), rng.normal(5, 1, (4, 3))
    want = np.empty((7, 4))
    for i in range(7):
        kernel = [
            (1 + np.linalg.norm(h[i] - c[j]) ** 2 / alpha) ** (-(alpha + 1) / 2) for j in range(4)
        ]
        want[i] = np.array(kernel) / sum(kernel)
    got = student_t_assignment(tf.constant(h), tf.constant(c), alpha)
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_gradient_of_the_assignment_is_that_of_equation_8() -> None:
    rng = np.random.default_rng(1)
    h, c, weight = rng.normal(size=(3, 2)), rng.normal(size=(4, 2)), rng.normal(size=(3, 4))

    def weighted(h: np.ndarray) -> float:
        kernel = 1 / (1 + ((h[:, None] - c[None]) ** 2).sum(-1))
        return (weight * kernel / kernel.sum(1, keepdims=True)).sum()

    x = tf.constant(h)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(weight * student_t_assignment(x, tf.constant(c)))
    step, want = 1e-6, np.zeros_like(h)
    for i in np.ndindex(*h.shape):
        up, down = h.copy(), h.copy()
        up[i] += step
        down[i] -= step
        want[i] = (weighted(up) - weighted(down)) / (2 * step)
    np.testing.assert_allclose(tape.gradient(loss, x), want, atol=1e-8)


def test_largest_assignment_is_the_cluster() -> None:
    x = tf.constant(groups()[0])
    centroids, clusters = kmeans(x, 6)
    np.testing.assert_array_equal(tf.argmax(student_t_assignment(x, centroids), 1), clusters)
    with pytest.raises(InputError, match="alpha must be positive"):
        student_t_assignment(x, centroids, alpha=0)
