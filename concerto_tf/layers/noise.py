"""Views of a cell: noise on some of its genes."""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import accumulation_dtype, serializable
from concerto_tf.errors import InputError
from concerto_tf.layers.random_layer import Draw, GeneAugmentation


@lru_cache
def _normal_quantiles() -> np.ndarray:
    """The standard normal distribution in 65,536 equally likely values, ascending."""
    upper = [NormalDist().inv_cdf(0.5 + (i + 0.5) / 2**16) for i in range(2**15)]
    return np.concatenate([-np.array(upper[::-1]), upper])


def _normal(draw: Draw, cells: tf.Tensor, genes: int, scale: float, dtype: tf.DType) -> tf.Tensor:
    """Normal noise [B, G] from one random byte per value.

    A value is one of 65,536 quantiles: a byte of its own says in which 256th of the distribution
    it lies, and a byte of the gene plus one of the cell where in there. So the values of a cell
    are independent and exactly distributed. A table is quicker than any formula, and the same
    inside and outside XLA.
    """
    words = draw.bits([cells, -(-genes // 4)])
    coarse = tf.cast(tf.reshape(tf.bitcast(words, tf.uint8), [cells, -1])[:, :genes], tf.int32)
    fine = (draw.integers(256, [genes]) + draw.integers(256, [cells, 1])) % 256
    return tf.gather(tf.constant(scale * _normal_quantiles(), dtype), 256 * coarse + fine)


@serializable
class GaussianNoise(GeneAugmentation):
    """Adds normal noise to some genes of some cells in training.

    Args:
        stddev: Standard deviation of the noise; its mean is 0.
        fraction: Share of the genes that are changed, to the nearest number of genes.
        probability: Probability that a cell is changed.
        seed: Seed of the noise.
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        inputs: Normalized values [B, G], or of one cell [G].
        training: Whether to change anything.
        index: Which draw, by its number from 0 on; by default the next (`RandomLayer`).

    Returns:
        Values [B, G].

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.layers import GaussianNoise
    >>> noise = GaussianNoise(stddev=0.2, fraction=0.8, probability=1.0)
    >>> cell = tf.ones([1, 10])
    >>> int(tf.reduce_sum(tf.cast(noise(cell, training=True) != cell, tf.int32)))
    8

    Reference:
        CLEAR, Data augmentation (ii).
    """

    def __init__(
        self,
        stddev: float = 0.2,
        fraction: float = 0.8,
        probability: float = 0.5,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(fraction=fraction, probability=probability, seed=seed, **kwargs)
        if not 0 <= stddev < float("inf"):
            raise InputError(f"stddev must be 0 or more, not {stddev!r}.")
        self.stddev = float(stddev)

    def call(
        self,
        inputs: tf.Tensor,
        training: bool | None = None,
        index: tf.Tensor | int | None = None,
    ) -> tf.Tensor:
        count = self._count(self._genes)
        if not training or count == 0 or self.probability == 0:
            return inputs
        draw, cells = self._draw(index), tf.shape(inputs)[0]
        noise = _normal(draw, cells, self._genes, self.stddev, inputs.dtype)
        chosen = draw.places(cells, self._genes, self.probability) < count
        return tf.where(chosen, inputs + noise, inputs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "stddev": self.stddev}


@serializable
class ScaledNoise(GeneAugmentation):
    """Adds normal noise that is mapped to [0, 1] in training.

    The least noise in the minibatch (of this replica) becomes 0 and the largest 1, so the noise
    is positive, with a mean near 0.5 and, in a large minibatch, a standard deviation near 0.12.

    Args:
        fraction: Share of the genes that are changed, to the nearest number of genes.
        probability: Probability that a cell is changed.
        seed: Seed of the noise.
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        inputs: Normalized values [B, G], or of one cell [G].
        training: Whether to change anything.
        index: Which draw, by its number from 0 on; by default the next (`RandomLayer`).

    Returns:
        Values [B, G].

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.layers import ScaledNoise
    >>> noise = ScaledNoise()(tf.zeros([4, 100]), training=True)
    >>> float(tf.reduce_min(noise)), float(tf.reduce_max(noise))
    (0.0, 1.0)

    Reference:
        CICL, section 2.2.1.
    """

    def __init__(
        self, fraction: float = 1.0, probability: float = 1.0, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(fraction=fraction, probability=probability, seed=seed, **kwargs)

    def call(
        self,
        inputs: tf.Tensor,
        training: bool | None = None,
        index: tf.Tensor | int | None = None,
    ) -> tf.Tensor:
        count = self._count(self._genes)
        if not training or count == 0 or self.probability == 0:
            return inputs
        draw, cells = self._draw(index), tf.shape(inputs)[0]
        wide = accumulation_dtype(inputs.dtype)
        noise = draw.hold(_normal(draw, cells, self._genes, 1.0, wide))
        least, most = tf.reduce_min(noise), tf.reduce_max(noise)
        noise = tf.cast(tf.math.divide_no_nan(noise - least, most - least), inputs.dtype)
        if count == self._genes and self.probability == 1:
            return inputs + noise
        chosen = draw.places(cells, self._genes, self.probability) < count
        return tf.where(chosen, inputs + noise, inputs)
