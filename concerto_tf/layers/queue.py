"""The embeddings of the latest minibatches, kept as negatives for the next."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from concerto_tf._keras import (
    accumulation_dtype,
    compute_dtype,
    gather_over_replicas,
    keras,
    replica_count,
    serializable,
    state_weight,
)
from concerto_tf.errors import InputError, checked_whole


@serializable
class EmbeddingQueue(keras.layers.Layer):
    """Keeps the embeddings of the latest minibatches; the newest replaces the oldest.

    The queue is state, saved with the model. Under a distribution strategy the embeddings of all
    replicas enter it, in their order, and every replica has the same queue.

    Args:
        size: Number of embeddings kept; a multiple of those of a minibatch over all replicas, so
            that whole minibatches come and go.
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        inputs: Embeddings of this minibatch [B, d], float.
        training: Whether they enter the queue.

    Returns:
        The embeddings of earlier minibatches [size, d], float32 or wider, of which the first
        ``filled`` are there and the rest is zero, and that number, int32: what
        `concerto_tf.losses.info_nce` takes.

    Raises:
        InputError: ``size`` is not a multiple of the embeddings of a minibatch.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.layers import EmbeddingQueue
    >>> queue = EmbeddingQueue(size=4)
    >>> for minibatch in ([[1.0], [2.0]], [[3.0], [4.0]], [[5.0], [6.0]]):
    ...     earlier, filled = queue(tf.constant(minibatch), training=True)
    ...     print(int(filled), earlier.numpy().ravel().tolist())
    0 [0.0, 0.0, 0.0, 0.0]
    2 [1.0, 2.0, 0.0, 0.0]
    4 [1.0, 2.0, 3.0, 4.0]
    >>> tf.convert_to_tensor(queue.embeddings).numpy().ravel().tolist()
    [5.0, 6.0, 3.0, 4.0]

    Reference:
        CLEAR, The CLEAR framework (ii).
    """

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.size = checked_whole("size", size)

    def build(self, input_shape: Any) -> None:
        width = int(tuple(input_shape)[-1])
        dtype = accumulation_dtype(compute_dtype(self)).name
        self.embeddings = state_weight(self, "embeddings", (self.size, width), dtype)
        self.pointer = state_weight(self, "pointer", (), "int32")
        self.filled = state_weight(self, "filled", (), "int32")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        # Copies: a variable that was read may change under the reader.
        earlier = tf.identity(tf.convert_to_tensor(self.embeddings))
        filled = tf.identity(tf.convert_to_tensor(self.filled))
        if training:
            self.enqueue(inputs)
        return earlier, filled

    def enqueue(self, inputs: tf.Tensor) -> None:
        """Puts the embeddings of a minibatch in the place of the oldest.

        Args:
            inputs: Embeddings [B, d], float; no gradient flows through the queue.

        Raises:
            InputError: ``size`` is not a multiple of the embeddings of a minibatch.
        """
        self._check(inputs.shape[0])
        old = tf.convert_to_tensor(self.embeddings)
        new = gather_over_replicas(tf.cast(tf.stop_gradient(inputs), old.dtype))
        count, at = tf.shape(new)[0], tf.convert_to_tensor(self.pointer)
        rows = (at + tf.range(count))[:, tf.newaxis]
        self.embeddings.assign(tf.tensor_scatter_nd_update(old, rows, new))
        self.pointer.assign((at + count) % self.size)
        filled = tf.convert_to_tensor(self.filled)
        self.filled.assign(tf.minimum(filled + count, self.size))

    def _check(self, cells: int | None) -> None:
        if cells is None:
            raise InputError(
                "A queue takes minibatches of a fixed size; batch with drop_remainder=True."
            )
        together = cells * replica_count()
        if self.size % together:
            raise InputError(
                f"The queue holds {self.size} embeddings, which is not a multiple of the "
                f"{together} of a minibatch; take {max(self.size // together, 1) * together}."
            )

    def compute_output_shape(
        self, input_shape: Any
    ) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        return (self.size, tuple(input_shape)[-1]), ()

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("autocast", None)
        return {**config, "size": self.size}
