"""A loss without negatives: views agree, every dimension varies, no two say the same."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from concerto_tf._keras import accumulation_dtype, keras, serializable, sum_over_replicas


def vicreg(
    view_a: tf.Tensor,
    view_b: tf.Tensor,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    epsilon: float = 1e-4,
) -> tf.Tensor:
    """Variance-invariance-covariance regularization of two views of the same cells.

    Row i of both views is the same cell. Variances and covariances are those of the cells of
    **all replicas** of a distribution strategy. Embeddings are not normalized.

    - invariance: mean squared difference of the views, over cells and dimensions;
    - variance: mean over dimensions of ``max(0, 1 - sqrt(Var + epsilon))``, summed over the views;
    - covariance: squares of the covariances of different dimensions, divided by the number of
      dimensions, summed over the views.

    A cell alone in its batch has no variance and no covariance.

    Args:
        view_a: Embeddings of one view [B, d], float.
        view_b: Embeddings of the other view [B, d].
        invariance, variance, covariance: Weights of the terms.
        epsilon: Added to the variances.

    Returns:
        Loss of each cell [B] (the terms of the whole batch are in each), float32 or wider. Its
        mean is the loss.

    Example:

    Views that are the same point for all cells agree, and pay for it:

    >>> import tensorflow as tf
    >>> from concerto_tf.losses import vicreg
    >>> vicreg(tf.ones([4, 2]), tf.ones([4, 2])).numpy().round(2).tolist()
    [49.5, 49.5, 49.5, 49.5]

    Reference:
        Bardes et al. 2022 (VICReg), Algorithm 1. Its equation 5 sums over dimensions where the
        algorithm, to which the weights belong, takes the mean.
    """
    dtype = accumulation_dtype(view_a.dtype)
    view_a, view_b = tf.cast(view_a, dtype), tf.cast(view_b, dtype)
    cells, total_a, total_b = sum_over_replicas(
        tf.cast(tf.shape(view_a)[0], dtype),
        tf.reduce_sum(view_a, axis=0),
        tf.reduce_sum(view_b, axis=0),
    )
    centered = [view_a - total_a / cells, view_b - total_b / cells]
    products = sum_over_replicas(*(tf.matmul(z, z, transpose_a=True) for z in centered))
    spread, redundancy = tf.zeros((), dtype), tf.zeros((), dtype)
    for product in products:
        matrix = product / tf.maximum(cells - 1, 1)
        own = tf.linalg.diag_part(matrix)
        spread += tf.reduce_mean(tf.nn.relu(1 - tf.sqrt(own + epsilon)))
        others = tf.linalg.set_diag(matrix, tf.zeros_like(own))
        redundancy += tf.reduce_sum(tf.square(others)) / tf.cast(tf.shape(own)[0], dtype)
    difference = tf.reduce_mean(tf.math.squared_difference(view_a, view_b), axis=-1)
    return invariance * difference + variance * spread + covariance * redundancy


@serializable
class VICReg(keras.losses.Loss):
    """`vicreg` as a Keras loss: ``y_true`` and ``y_pred`` are the two views.

    Args:
        invariance, variance, covariance: Weights of the terms.
        name: Name of the loss.
        **kwargs: Of `keras.losses.Loss`.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.losses import VICReg
    >>> round(float(VICReg()(tf.ones([4, 2]), tf.ones([4, 2]))), 2)
    49.5
    """

    def __init__(
        self,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        name: str = "vicreg",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if min(invariance, variance, covariance) < 0:
            raise ValueError(
                "The weights of VICReg must be 0 or more, not "
                f"{invariance!r}, {variance!r} and {covariance!r}."
            )
        self.invariance = float(invariance)
        self.variance = float(variance)
        self.covariance = float(covariance)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return vicreg(y_true, y_pred, self.invariance, self.variance, self.covariance)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "invariance": self.invariance,
            "variance": self.variance,
            "covariance": self.covariance,
        }
