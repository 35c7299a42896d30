"""Signs of collapse: what a contrastive loss alone does not show."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from concerto_tf._keras import accumulation_dtype, keras, serializable


def _unit(z: tf.Tensor) -> tf.Tensor:
    return tf.math.l2_normalize(tf.cast(z, accumulation_dtype(z.dtype)), axis=-1)


def alignment(view_a: tf.Tensor, view_b: tf.Tensor) -> tf.Tensor:
    """Mean squared distance between the two views of a cell on the unit sphere.

    Args:
        view_a: Embeddings of one view [B, d], float.
        view_b: Embeddings of the other view [B, d].

    Returns:
        Scalar in [0, 4]; 0 where the views agree.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.losses import alignment
    >>> float(alignment(tf.eye(2), tf.eye(2)))
    0.0

    Reference:
        Wang and Isola 2020, equation 7 (alpha = 2).
    """
    return tf.reduce_mean(tf.reduce_sum(tf.square(_unit(view_a) - _unit(view_b)), axis=-1))


def uniformity(embedding: tf.Tensor) -> tf.Tensor:
    """How evenly cells spread over the unit sphere: the log of the mean Gaussian potential.

    Args:
        embedding: Embeddings [B, d], float, B >= 2.

    Returns:
        Scalar in [-8, 0]; 0 where all cells are one point (collapse).

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.losses import uniformity
    >>> abs(round(float(uniformity(tf.ones([4, 2]))), 4))
    0.0

    Reference:
        Wang and Isola 2020, equation 8 (t = 2).
    """
    z = _unit(embedding)
    cells = tf.shape(z)[0]
    potential = tf.exp(4 * tf.matmul(z, z, transpose_b=True) - 4)
    # Every cell meets itself once with potential 1.
    pairs = tf.reduce_sum(potential) - tf.cast(cells, z.dtype)
    return tf.minimum(tf.math.log(pairs / tf.cast(cells * (cells - 1), z.dtype)), 0.0)


def effective_rank(embedding: tf.Tensor) -> tf.Tensor:
    """Number of directions that an embedding really uses.

    The participation ratio of the eigenvalues of the covariance, ``(sum l)^2 / sum l^2``. It
    needs no decomposition: both sums are traces of the covariance and of its square.

    Args:
        embedding: Embeddings [B, d], float.

    Returns:
        Scalar in [1, min(B, d)]; 1 where all variance lies along one direction.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.losses import effective_rank
    >>> float(effective_rank(tf.constant([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])))
    2.0

    Reference:
        Participation ratio: Gao et al. 2017, "A theory of multineuronal dimensionality".
    """
    z = tf.cast(embedding, accumulation_dtype(embedding.dtype))
    z -= tf.reduce_mean(z, axis=0)
    covariance = tf.matmul(z, z, transpose_a=True)
    return tf.math.divide_no_nan(
        tf.square(tf.linalg.trace(covariance)), tf.reduce_sum(tf.square(covariance))
    )


class _ViewsMean(keras.metrics.Mean):
    """Mean over minibatches of a quantity of two views."""

    def __init__(self, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(name=name or self.default_name, **kwargs)

    def update_state(self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: Any = None) -> Any:
        """Takes the two views of a minibatch [B, d]; ``sample_weight`` is not used."""
        return super().update_state(tf.stop_gradient(self.measure(y_true, y_pred)))


@serializable
class Alignment(_ViewsMean):
    """`alignment` of the views as a Keras metric; rises when views stop agreeing."""

    default_name = "alignment"

    @staticmethod
    def measure(view_a: tf.Tensor, view_b: tf.Tensor) -> tf.Tensor:
        return alignment(view_a, view_b)


@serializable
class Uniformity(_ViewsMean):
    """`uniformity` of the first view as a Keras metric; near 0 in a collapse."""

    default_name = "uniformity"

    @staticmethod
    def measure(view_a: tf.Tensor, view_b: tf.Tensor) -> tf.Tensor:
        return uniformity(view_a)


@serializable
class EffectiveRank(_ViewsMean):
    """`effective_rank` of the first view as a Keras metric; near 1 in a collapse."""

    default_name = "effective_rank"

    @staticmethod
    def measure(view_a: tf.Tensor, view_b: tf.Tensor) -> tf.Tensor:
        return effective_rank(view_a)
