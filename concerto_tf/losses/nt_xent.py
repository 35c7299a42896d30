"""The contrastive loss: two views of a cell attract, all other cells repel."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from concerto_tf._keras import accumulation_dtype, gather_over_replicas, replica_index, serializable
from concerto_tf.losses.temperature import NEVER, TemperatureLoss


def nt_xent(
    view_a: tf.Tensor, view_b: tf.Tensor, temperature: float = 0.1, groups: tf.Tensor | None = None
) -> tf.Tensor:
    """Normalized temperature-scaled cross entropy between two views of the same cells.

    Row i of both views is the same cell. The negatives of a cell are all other cells' views, on
    **all replicas** of a distribution strategy: the mean of the replicas' losses is the loss of
    the global batch, gradients included. Every replica must hold the same number of cells.

    Args:
        view_a: Embeddings of one view [B, d], float; of any length, they are L2-normalized here.
        view_b: Embeddings of the other view [B, d].
        temperature: Divisor of the cosine similarities; small values weigh near negatives more.
        groups: Group of each cell [B], int, such as its source. Only cells of its own group are
            then negatives of a cell. A cell that is alone in its group has a loss of 0.

    Returns:
        Loss of each cell [B] (mean of its two views' terms), float32 or wider. Its mean is
        equation 9.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.losses import nt_xent
    >>> views = tf.eye(2)
    >>> loss = nt_xent(views, views, temperature=1.0)
    >>> [round(float(cell), 4) for cell in loss]
    [0.5514, 0.5514]

    Reference:
        Concerto, equations 7 to 9; Chen et al. 2020 (SimCLR).
    """
    dtype = accumulation_dtype(view_a.dtype)
    view_a = tf.math.l2_normalize(tf.cast(view_a, dtype), axis=-1)
    view_b = tf.math.l2_normalize(tf.cast(view_b, dtype), axis=-1)
    all_a, all_b = gather_over_replicas(view_a), gather_over_replicas(view_b)
    cells = tf.shape(view_a)[0]
    own = cells * replica_index() + tf.range(cells)
    itself = tf.one_hot(own, tf.shape(all_a)[0], on_value=NEVER, off_value=0.0, dtype=dtype)
    strangers = tf.zeros((), dtype)
    if groups is not None:
        others = gather_over_replicas(groups)
        strangers = NEVER * tf.cast(groups[:, tf.newaxis] != others[tf.newaxis], dtype)

    def similarity(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return tf.matmul(x, y, transpose_b=True) / temperature + strangers

    positive = tf.reduce_sum(view_a * view_b, axis=-1) / temperature

    def term(x: tf.Tensor, all_same: tf.Tensor, all_other: tf.Tensor) -> tf.Tensor:
        against = tf.concat([similarity(x, all_other), similarity(x, all_same) + itself], axis=1)
        return tf.reduce_logsumexp(against, axis=1) - positive

    return (term(view_a, all_a, all_b) + term(view_b, all_b, all_a)) / 2


@serializable
class NTXent(TemperatureLoss):
    """`nt_xent` as a Keras loss: ``y_true`` and ``y_pred`` are the two views.

    Args:
        temperature: Divisor of the cosine similarities.
        name: Name of the loss.
        **kwargs: Of `keras.losses.Loss`.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.losses import NTXent
    >>> loss = NTXent(temperature=1.0)(tf.eye(2), tf.eye(2))
    >>> round(float(loss), 4)
    0.5514

    As the loss of any Keras model whose targets are the other view of each cell:

    >>> model = tf.keras.Sequential([tf.keras.Input([4]), tf.keras.layers.Dense(4)])
    >>> model.compile("adam", NTXent(temperature=0.5))
    >>> history = model.fit(tf.random.normal([8, 4]), tf.random.normal([8, 4]), verbose=0)
    >>> sorted(history.history)
    ['loss']
    """

    def __init__(self, temperature: float = 0.1, name: str = "nt_xent", **kwargs: Any) -> None:
        super().__init__(temperature, name=name, **kwargs)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return nt_xent(y_true, y_pred, self.temperature)
