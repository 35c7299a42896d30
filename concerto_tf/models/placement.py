"""Where cells lie in an embedding and how far they spread, for comparisons by cosine."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import keras, serializable, state_weight
from concerto_tf.models.encoder import Geometry

#: What is added to the embedding's units that hold components, in their standard deviations.
READOUT_OFFSET = 0.4


@serializable
class Placement(keras.layers.Layer):
    """Moves embeddings away from the origin, along the units that hold components.

    Cells in the middle of all others then have a direction to compare by cosine. Distances do not
    change.

    Args:
        offset: What is added to each of these units, once `place` says which they are.
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        z: Embeddings [B, d].

    Returns:
        Embeddings [B, d].
    """

    def __init__(self, offset: float = READOUT_OFFSET, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.offset = float(offset)

    def build(self, input_shape: Any) -> None:
        width = int(tuple(input_shape)[-1])
        self.origin = state_weight(self, "origin", (width,))
        #: Standard deviations of the units; 0 until they are known.
        self.deviations = state_weight(self, "deviations", (2, width))
        super().build(input_shape)

    def call(self, z: tf.Tensor) -> tf.Tensor:
        return z + tf.cast(self.origin, z.dtype)

    def place(self, held: int, spread: np.ndarray | None) -> None:
        """Notes that the embedding's first units hold components, and puts the offset on them.

        Args:
            held: Number of units that hold components.
            spread: Standard deviations along these, of cells seen and of others [2, held]; None
                where they are not known.
        """
        width = int(self.origin.shape[0])
        self.origin.assign(self.offset * (np.arange(width) < held))
        if spread is not None:
            all_units = np.zeros((2, width), np.float32)
            all_units[:, :held] = spread
            self.deviations.assign(all_units)

    @property
    def geometry(self) -> Geometry:
        """Where cells lie, and how far they spread where that is known."""
        origin, spread = (np.array(tf.convert_to_tensor(w)) for w in (self.origin, self.deviations))
        return Geometry(origin, spread if spread.any() else None)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "offset": self.offset}
