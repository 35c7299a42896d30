"""Where cells lie in an embedding, and how far they spread: what comparing them rests on."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import state_weight

#: What is added to the embedding's units that hold components, in their standard deviations.
READOUT_OFFSET = 0.4


class Readout:
    """The part of a model that knows which units of its embedding hold components.

    A method that starts from components calls `build_readout` when it is built and `place` when it
    has started, adds ``readout_origin`` to its embeddings, and has an argument ``readout_offset``.
    """

    #: What is added to an embedding [d], a weight of a method that has an offset.
    readout_origin: Any = None
    #: What `spread` gives, a weight [2, d] of a method that knows; 0 until it does.
    readout_spread: Any = None
    embedding_dim: int
    readout_offset: float

    def build_readout(self) -> None:
        """Creates the weights."""
        self.readout_origin = state_weight(self, "readout_origin", (self.embedding_dim,))
        self.readout_spread = state_weight(self, "readout_spread", (2, self.embedding_dim))

    @property
    def origin(self) -> np.ndarray:
        """Where a cell lies that is in the middle of all [d]."""
        if self.readout_origin is None:
            return np.zeros(self.embedding_dim, np.float32)
        return np.array(tf.convert_to_tensor(self.readout_origin))

    @property
    def spread(self) -> np.ndarray | None:
        """How far cells spread along each unit of an embedding [2, d].

        In standard deviations, of the cells that the start saw and of cells left out of it; 0 for
        units that hold no component. None where it is not known.
        """
        if self.readout_spread is None:
            return None
        spread = np.array(tf.convert_to_tensor(self.readout_spread))
        return spread if spread.any() else None

    def place(self, held: int, spread: np.ndarray | None) -> None:
        """Notes that the embedding's first units hold components, and puts the offset on them.

        Args:
            held: Number of units that hold components.
            spread: How far cells spread along these, as `spread` has it [2, held]; None where
                that is not known.
        """
        self.readout_origin.assign(self.readout_offset * (np.arange(self.embedding_dim) < held))
        if spread is not None:
            all_units = np.zeros((2, self.embedding_dim), np.float32)
            all_units[:, :held] = spread
            self.readout_spread.assign(all_units)
