"""Views of a cell: what a layer hides at random."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import serializable
from concerto_tf.errors import checked_share
from concerto_tf.layers.random_layer import Draw, RandomLayer


@serializable
class RandomMask(RandomLayer):
    """Hides values at random in training; every call draws a new view.

    Unlike Keras' ``Dropout`` it gives the same views with the same seed on every Keras, inside and
    outside XLA, and after a resumed training.

    Args:
        rate: Probability that a value becomes zero.
        rescale: Whether to divide what remains by ``1 - rate`` (inverted dropout, the choice for
            hidden units). Input genes are hidden without it, as sequencing misses them.
        seed: Seed of the masks.
        probability: Probability that anything is hidden in a cell.
        exact: Whether to hide the same number of values in every cell, the nearest to ``rate`` of
            them but never all, instead of each with that probability. Several times quicker. Takes
            [B, G].
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        inputs: Values of any shape, float; the first axis are cells, but for one cell [G].
        training: Whether to hide anything.
        index: Which draw, by its number from 0 on; by default the next (`RandomLayer`).

    Returns:
        Values of the same shape.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.layers import RandomMask
    >>> mask = RandomMask(0.5, rescale=False)
    >>> 400 < float(tf.reduce_sum(mask(tf.ones([1, 1000]), training=True))) < 600
    True
    >>> float(tf.reduce_sum(mask(tf.ones([1, 1000]))))
    1000.0
    >>> mask = RandomMask(0.2, rescale=False, exact=True)
    >>> float(tf.reduce_sum(mask(tf.ones([1, 1000]), training=True)))
    800.0

    Reference:
        Concerto, Methods, "Data augmentation with dropout layer"; contrastive-sc, input dropout;
        CLEAR, Data augmentation (i): ``rate=0.2, probability=0.5``, without rescaling.
    """

    def __init__(
        self,
        rate: float,
        rescale: bool = True,
        seed: int = 0,
        probability: float = 1.0,
        exact: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed=seed, **kwargs)
        self.rate = checked_share("rate", rate, below_one=True)
        self.rescale = bool(rescale)
        self.probability = checked_share("probability", probability)
        self.exact = bool(exact)
        # To the precision of a float32 in [0, 1), which has 23 bits.
        self._threshold = np.uint32(min(math.ceil(self.rate * 2**23) << 9, 2**32 - 1))

    def call(
        self,
        inputs: tf.Tensor,
        training: bool | None = None,
        index: tf.Tensor | int | None = None,
    ) -> tf.Tensor:
        if not training or self.rate == 0 or self.probability == 0:
            return inputs
        draw = self._draw(index)
        kept = tf.where(self._kept(draw, inputs), inputs, tf.zeros_like(inputs))
        out = kept / (1 - self.rate) if self.rescale else kept
        if self.probability == 1:
            return out
        of_cells = [tf.shape(inputs)[0]] + [1] * (inputs.shape.rank - 1)
        return tf.where(draw.chance(self.probability, of_cells), out, inputs)

    def _kept(self, draw: Draw, inputs: tf.Tensor) -> tf.Tensor:
        """Which values stay, bool, shape of the inputs."""
        if not self.exact:
            return draw.bits(tf.shape(inputs)) >= self._threshold
        if inputs.shape.rank != 2 or inputs.shape[1] is None:
            raise ValueError(
                f"RandomMask with exact=True takes values [cells, genes] with a fixed number of "
                f"genes, not shape {inputs.shape}."
            )
        genes = int(inputs.shape[1])
        hidden = min(int(self.rate * genes + 0.5), genes - 1)
        return draw.places(tf.shape(inputs)[0], genes, 1.0) >= hidden

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "rate": self.rate,
            "rescale": self.rescale,
            "probability": self.probability,
            "exact": self.exact,
        }
