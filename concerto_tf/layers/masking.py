"""Views of a cell: what a layer hides at random."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import keras, replica_index, serializable, state_weight


@serializable
class RandomMask(keras.layers.Layer):
    """Hides values at random in training; every call draws a new view.

    Unlike Keras' ``Dropout`` it draws from a counter that is saved with the model: the same seed
    gives the same views on every Keras, inside and outside XLA, and after a resumed training.
    Replicas draw different masks.

    Args:
        rate: Probability that a value becomes zero.
        rescale: Whether to divide what remains by ``1 - rate`` (inverted dropout, the choice for
            hidden units). Input genes are hidden without it, as sequencing misses them.
        seed: Seed of the masks.
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        inputs: Values of any shape, float.
        training: Whether to hide anything.

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

    Reference:
        Concerto, Methods, "Data augmentation with dropout layer"; contrastive-sc, input dropout.
    """

    def __init__(
        self, rate: float, rescale: bool = True, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate must lie in [0, 1), not {rate!r}.")
        self.rate = float(rate)
        self.rescale = bool(rescale)
        self.seed = int(seed)
        # To the precision of a float32 in [0, 1), which has 23 bits.
        self._threshold = np.uint32(min(math.ceil(self.rate * 2**23) << 9, 2**32 - 1))

    def build(self, input_shape: Any) -> None:
        self.draws = state_weight(self, "draws", (), "int64")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if not training or self.rate == 0:
            return inputs
        draw = tf.convert_to_tensor(self.draws)
        self.draws.assign_add(tf.ones((), tf.int64))
        stream = tf.cast(replica_index(), tf.int64) * 1_000_003 + self.seed
        # Named, since XLA's own choice is another generator and many times slower on CPUs. Bits,
        # since TensorFlow and XLA make different floats of the same bits.
        bits = tf.random.stateless_uniform(
            tf.shape(inputs), tf.stack([stream, draw]), None, None, tf.uint32, alg="philox"
        )
        kept = tf.where(bits >= self._threshold, inputs, tf.zeros_like(inputs))
        return kept / (1 - self.rate) if self.rescale else kept

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "rate": self.rate,
            "rescale": self.rescale,
            "seed": self.seed,
        }
