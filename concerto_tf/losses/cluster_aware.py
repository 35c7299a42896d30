"""The contrastive loss between clusters: cells of one cluster attract, those of others repel."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from concerto_tf._keras import accumulation_dtype, gather_over_replicas, replica_index, serializable
from concerto_tf.losses.temperature import NEVER, TemperatureLoss


def cluster_aware(
    view_a: tf.Tensor, view_b: tf.Tensor, clusters: tf.Tensor, temperature: float = 0.5
) -> tf.Tensor:
    """Cross entropy between the cells of a cell's own cluster and those of all others.

    Row i of both views is the same cell. Positives of a view are all views of the cells of its
    cluster, its own other view among them; negatives are all views of the other clusters' cells,
    on **all replicas** of a distribution strategy. The positives do not stand in the denominator,
    so the loss can be negative. Every replica must hold the same number of cells, and ``clusters``
    must mean the same on all (see `concerto_tf.layers.kmeans`).

    A cell alone in its cluster has its own other view as its positive. A cell whose cluster is the
    whole batch has a loss of 0.

    CICL's instance-wise loss, equations 12 to 14, is `nt_xent` at the same temperature; the whole
    loss, equation 17, is ``nt_xent(...) + 0.1 * cluster_aware(...)``.

    Args:
        view_a: Embeddings of one view [B, d], float; of any length, they are L2-normalized here.
        view_b: Embeddings of the other view [B, d].
        clusters: Cluster of each cell [B], int.
        temperature: Divisor of the cosine similarities.

    Returns:
        Loss of each cell [B] (mean of its two views' terms), float32 or wider. Its mean is
        equation 16.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.losses import cluster_aware
    >>> views = tf.constant([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    >>> loss = cluster_aware(views, views, tf.constant([0, 0, 1, 1]), temperature=1.0)
    >>> [round(float(cell), 4) for cell in loss]  # -log(3 e / (4 / e))
    [-1.7123, -1.7123, -1.7123, -1.7123]

    Reference:
        CICL, equations 13, 15 and 16.
    """
    dtype = accumulation_dtype(view_a.dtype)
    views = [tf.math.l2_normalize(tf.cast(view, dtype), axis=-1) for view in (view_a, view_b)]
    all_views = tf.concat([gather_over_replicas(view) for view in views], axis=0)
    similarity = tf.matmul(tf.concat(views, axis=0), all_views, transpose_b=True) / temperature
    # Rows and columns: the cells' first views, then their second views.
    cells, all_cells = tf.shape(view_a)[0], tf.shape(all_views)[0] // 2
    own = cells * replica_index() + tf.range(cells)
    itself = tf.concat([own, all_cells + own], axis=0)[:, tf.newaxis] == tf.range(2 * all_cells)
    same = tf.tile(clusters[:, tf.newaxis] == gather_over_replicas(clusters), [2, 2])

    def log_sum(which: tf.Tensor) -> tf.Tensor:
        kept = tf.where(which, similarity, tf.cast(NEVER, dtype))
        return tf.reduce_logsumexp(kept, axis=1)

    loss = log_sum(~same) - log_sum(same & ~itself)
    loss = tf.where(tf.reduce_all(same, axis=1), tf.zeros_like(loss), loss)
    return (loss[:cells] + loss[cells:]) / 2


@serializable
class ClusterAware(TemperatureLoss):
    """`cluster_aware` as a Keras loss.

    ``y_pred`` holds the two views of the cells side by side [B, 2 d], ``y_true`` their clusters
    [B] or [B, 1].

    Args:
        temperature: Divisor of the cosine similarities.
        name: Name of the loss.
        **kwargs: Of `keras.losses.Loss`.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.losses import ClusterAware
    >>> views = tf.constant([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    >>> loss = ClusterAware(temperature=1.0)
    >>> round(float(loss(tf.constant([0, 0, 1, 1]), tf.concat([views, views], axis=1))), 4)
    -1.7123
    """

    def __init__(
        self, temperature: float = 0.5, name: str = "cluster_aware", **kwargs: Any
    ) -> None:
        super().__init__(temperature, name=name, **kwargs)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        view_a, view_b = tf.split(y_pred, 2, axis=-1)
        clusters = tf.reshape(tf.cast(y_true, tf.int32), [-1])
        return cluster_aware(view_a, view_b, clusters, self.temperature)
