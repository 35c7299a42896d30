"""The contrastive loss with negatives from earlier minibatches."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from concerto_tf._keras import accumulation_dtype, gather_over_replicas, replica_index, serializable
from concerto_tf.losses.temperature import NEVER, TemperatureLoss


def info_nce(
    query: tf.Tensor,
    key: tf.Tensor,
    queue: tf.Tensor | None = None,
    temperature: float = 0.2,
    *,
    own_key: tf.Tensor | None = None,
    filled: tf.Tensor | None = None,
    normalize: bool = True,
) -> tf.Tensor:
    """Cross entropy of telling a cell's other view among all views at hand.

    Row i of ``query``, ``key`` and ``own_key`` is the same cell. The positive of a query is the
    key of its cell's **other** view. The negatives are the keys of all other cells of the
    minibatch, on all replicas of a distribution strategy, and the ``queue`` of earlier
    minibatches. Every replica must hold the same number of cells and the same queue.

    With two views a and b, embedded by a trained encoder (queries q) and a slow one (keys k),
    equation 2 is the mean of
    ``(info_nce(q_a, k_b, queue, own_key=k_a) + info_nce(q_b, k_a, queue, own_key=k_b)) / 2``.
    With one encoder and no queue that is `nt_xent`.

    Args:
        query: Embeddings of one view [B, d], float.
        key: Embeddings of the other view [B, d].
        queue: Embeddings of both views of earlier minibatches [Q, d], without gradient.
        temperature: Divisor of the similarities; small values weigh near negatives more.
        own_key: Embeddings [B, d] of the queries' own view by the encoder of the keys: further
            negatives for all other cells.
        filled: Number of rows of ``queue``, from the first, that hold embeddings, int scalar; by
            default all.
        normalize: Whether to L2-normalize all embeddings, so that similarities are cosines.

    Returns:
        Loss of each query [B], float32 or wider.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.losses import info_nce
    >>> views = tf.eye(2)
    >>> loss = info_nce(views, views, queue=-tf.eye(2), temperature=1.0)
    >>> [round(float(cell), 4) for cell in loss]
    [0.6265, 0.6265]

    Reference:
        CLEAR, equations 1 and 2; He et al. 2020 (MoCo), which normalizes.
    """
    dtype = accumulation_dtype(query.dtype)

    def embedding(z: tf.Tensor) -> tf.Tensor:
        z = tf.cast(z, dtype)
        return tf.math.l2_normalize(z, axis=-1) if normalize else z

    query, key = embedding(query) / temperature, embedding(key)
    keys = [gather_over_replicas(key)]
    if own_key is not None:
        keys.append(gather_over_replicas(embedding(own_key)))
    in_batch = sum(tf.shape(part)[0] for part in keys)
    if queue is not None:
        keys.append(tf.stop_gradient(embedding(queue)))
    # One product for all keys: most of the cost is here.
    similarity = tf.matmul(query, tf.concat(keys, axis=0), transpose_b=True)
    column, never = tf.range(tf.shape(similarity)[1]), tf.cast(NEVER, dtype)
    if own_key is not None:
        cells = tf.shape(query)[0]
        itself = in_batch // 2 + cells * replica_index() + tf.range(cells)
        similarity = tf.where(column == itself[:, tf.newaxis], never, similarity)
    if queue is not None and filled is not None:
        there = in_batch + tf.cast(filled, tf.int32)
        similarity = tf.where(column < there, similarity, never)
    return tf.reduce_logsumexp(similarity, axis=1) - tf.reduce_sum(query * key, axis=-1)


@serializable
class InfoNCE(TemperatureLoss):
    """`info_nce` within the minibatch as a Keras loss: ``y_true`` are keys, ``y_pred`` queries.

    Args:
        temperature: Divisor of the similarities.
        normalize: Whether to L2-normalize all embeddings.
        name: Name of the loss.
        **kwargs: Of `keras.losses.Loss`.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.losses import InfoNCE
    >>> round(float(InfoNCE(temperature=1.0)(tf.eye(2), tf.eye(2))), 4)
    0.3133
    """

    def __init__(
        self,
        temperature: float = 0.2,
        normalize: bool = True,
        name: str = "info_nce",
        **kwargs: Any,
    ) -> None:
        super().__init__(temperature, name=name, **kwargs)
        self.normalize = bool(normalize)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return info_nce(y_pred, y_true, temperature=self.temperature, normalize=self.normalize)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "normalize": self.normalize}
