"""Clusters of a minibatch, found on the device."""

from __future__ import annotations

import tensorflow as tf

from concerto_tf._keras import accumulation_dtype, gather_over_replicas, replica_count
from concerto_tf.errors import InputError


def squared_distances(x: tf.Tensor, centroids: tf.Tensor) -> tf.Tensor:
    """Squared distances [B, K] of cells [B, d] to centroids [K, d]."""
    product = tf.matmul(x, centroids, transpose_b=True)
    of_centroids = tf.reduce_sum(tf.square(centroids), axis=-1)
    of_cells = tf.reduce_sum(tf.square(x), axis=-1, keepdims=True)
    return tf.maximum(of_cells + of_centroids - 2 * product, 0)


def kmeans(
    x: tf.Tensor, k: int, steps: int = 10, seed: int | tf.Tensor = 0
) -> tuple[tf.Tensor, tf.Tensor]:
    """K-means of a minibatch: k-means++ start, then a fixed number of Lloyd steps.

    It clusters the cells of **all replicas** of a distribution strategy together, so that a
    cluster means the same on all. All shapes are static and XLA compiles it. No gradient flows.

    A centroid that no cell is nearest to stays where it is; with fewer different cells than
    clusters some stay without cells.

    Args:
        x: Embeddings [B, d], float.
        k: Number of clusters, at most the number of cells of all replicas.
        steps: Number of Lloyd steps.
        seed: Seed of the start; an int64 scalar such as the step of training to start anew at
            each. The same on all replicas.

    Returns:
        Centroids [k, d], float32 or wider, and the cluster of each cell [B], int32.

    Raises:
        InputError: ``k`` is larger than the number of cells, or less than 1.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.layers import kmeans
    >>> centroids, clusters = kmeans(tf.constant([[0.0], [1.0], [10.0], [11.0]]), k=2)
    >>> sorted(centroids.numpy().ravel().tolist())
    [0.5, 10.5]
    >>> bool(clusters[0] == clusters[1]), bool(clusters[1] == clusters[2])
    (True, False)

    Reference:
        Arthur and Vassilvitskii 2007 (k-means++); CICL, section 2.2.3.
    """
    if k < 1 or steps < 0:
        raise InputError(f"K-means needs k >= 1 and steps >= 0, not {k!r} and {steps!r}.")
    cells = None if x.shape[0] is None else x.shape[0] * replica_count()
    if cells is not None and k > cells:
        raise InputError(
            f"{k} clusters of a minibatch of {cells} cells; take a larger batch or fewer clusters."
        )
    dtype = accumulation_dtype(x.dtype)
    own = tf.cast(tf.stop_gradient(x), dtype)
    x = tf.ensure_shape(gather_over_replicas(own), [cells, own.shape[1]])
    # Distances do not change with the origin, and near it they cancel less.
    origin = tf.reduce_mean(x, axis=0)
    x, own = x - origin, own - origin
    centroids = _start(x, k, tf.cast(seed, tf.int64))

    def lloyd(i: tf.Tensor, centroids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        member = tf.one_hot(tf.argmin(squared_distances(x, centroids), axis=1), k, dtype=dtype)
        count = tf.reduce_sum(member, axis=0)[:, tf.newaxis]
        mean = tf.math.divide_no_nan(tf.matmul(member, x, transpose_a=True), count)
        return i + 1, tf.where(count > 0, mean, centroids)

    _, centroids = tf.while_loop(
        lambda i, _: i < steps, lloyd, (0, centroids), maximum_iterations=steps
    )
    clusters = tf.argmin(squared_distances(own, centroids), axis=1, output_type=tf.int32)
    return tf.stop_gradient(centroids + origin), clusters


def _start(x: tf.Tensor, k: int, seed: tf.Tensor) -> tf.Tensor:
    """k cells, each drawn in proportion to its squared distance to those drawn before."""
    cells = tf.shape(x)[0]
    bits = tf.random.stateless_uniform([k], tf.stack([seed, 0]), None, None, tf.uint32, "philox")
    # As many bits as a float32 holds exactly.
    uniform = tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), x.dtype) / 2**24

    def draw(i: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        cumulative = tf.cumsum(weight)
        # Cells that weigh nothing are passed over, the one at hand too.
        passed = tf.cast(cumulative <= uniform[i] * cumulative[-1], tf.int32)
        return tf.minimum(tf.reduce_sum(passed), cells - 1)

    def add(
        i: tf.Tensor, centroids: tf.Tensor, nearest: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        chosen = tf.gather(x, draw(i, nearest))
        centroids = tf.tensor_scatter_nd_update(centroids, [[i]], chosen[tf.newaxis])
        distance = tf.reduce_sum(tf.math.squared_difference(x, chosen), axis=1)
        # The first cell is drawn with equal weights.
        return i + 1, centroids, tf.where(i == 0, distance, tf.minimum(nearest, distance))

    first = (0, tf.zeros([k, x.shape[1]], x.dtype), tf.ones([cells], x.dtype))
    return tf.while_loop(lambda i, *_: i < k, add, first, maximum_iterations=k)[1]


def student_t_assignment(x: tf.Tensor, centroids: tf.Tensor, alpha: float = 1.0) -> tf.Tensor:
    """Probability that each cell belongs to each cluster, by Student's t-distribution.

    Args:
        x: Embeddings [B, d], float.
        centroids: Centroids of the clusters [K, d], float.
        alpha: Degrees of freedom; large values come close to a normal distribution.

    Returns:
        Probabilities [B, K], float32 or wider; each row adds up to 1. The largest of a row is at
        the nearest centroid: the cell's pseudo-label, equation 9.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.layers import student_t_assignment
    >>> student_t_assignment(tf.constant([[1.0]]), tf.constant([[1.0], [2.0]])).numpy().round(4)
    array([[0.6667, 0.3333]], dtype=float32)

    Reference:
        CICL, equation 8.
    """
    if not alpha > 0:
        raise InputError(f"alpha must be positive, not {alpha!r}.")
    dtype = accumulation_dtype(x.dtype)
    x, centroids = tf.cast(x, dtype), tf.cast(centroids, dtype)
    origin = tf.reduce_mean(centroids, axis=0)
    distance = squared_distances(x - origin, centroids - origin)
    # In logarithms, so that nothing vanishes far from all centroids.
    return tf.nn.softmax(-(alpha + 1) / 2 * tf.math.log1p(distance / alpha), axis=-1)
