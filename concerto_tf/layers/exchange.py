"""Views of a cell: values exchanged between its genes, or with other cells."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from concerto_tf._keras import serializable
from concerto_tf.errors import checked_whole
from concerto_tf.layers.random_layer import GeneAugmentation


@serializable
class RandomSwap(GeneAugmentation):
    """Swaps the values of random pairs of genes within a cell in training.

    Every cell keeps exactly the values it has, on other genes.

    Args:
        fraction: Share of the genes whose values are swapped, to the nearest number of pairs.
        probability: Probability that a cell is changed.
        seed: Seed of the pairs.
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        inputs: Normalized values [B, G], or of one cell [G].
        training: Whether to change anything.
        index: Which draw, by its number from 0 on; by default the next (`RandomLayer`).

    Returns:
        Values [B, G].

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.layers import RandomSwap
    >>> swap = RandomSwap(fraction=0.4, probability=1.0)
    >>> swapped = swap(tf.range(10.0)[tf.newaxis], training=True)[0]
    >>> sorted(swapped.numpy().tolist()) == list(range(10))
    True
    >>> int(tf.reduce_sum(tf.cast(swapped != tf.range(10.0), tf.int32)))
    4

    Reference:
        CLEAR, Data augmentation (iii).
    """

    def __init__(
        self, fraction: float = 0.1, probability: float = 0.5, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(fraction=fraction, probability=probability, seed=seed, **kwargs)

    def call(
        self,
        inputs: tf.Tensor,
        training: bool | None = None,
        index: tf.Tensor | int | None = None,
    ) -> tf.Tensor:
        pairs = self._genes // 2
        count = min(self._count(self._genes / 2), pairs)
        if not training or count == 0 or self.probability == 0:
            return inputs
        draw, cells = self._draw(index), tf.shape(inputs)[0]
        # The genes in random order on a circle, which a cell turns by a number of its own: those
        # that then lie opposite each other are its pairs.
        order = draw.order(self._genes)
        turn = draw.integers(self._genes, [cells, 1])
        place = (order + turn) % self._genes
        at = tf.tile(tf.argsort(order), [2])
        partner = tf.gather(at, 2 * self._genes - 1 - place - turn)
        pair = tf.minimum(place, self._genes - 1 - place)
        # Which pairs, likewise: in a second random order, turned; a gene without one has the last.
        rank = tf.gather(tf.concat([draw.order(pairs), [pairs]], 0), pair)
        rank = tf.where(rank < pairs, (rank + draw.integers(pairs, [cells, 1])) % pairs, pairs)
        chosen = rank < count
        if self.probability < 1:
            chosen &= draw.chance(self.probability, [cells, 1])
        return tf.where(chosen, tf.gather(draw.hold(inputs), partner, batch_dims=1), inputs)


@serializable
class Crossover(GeneAugmentation):
    """Exchanges some genes of a cell with other cells in training.

    The other cells are drawn anew for every cell, from the minibatch or from ``others``. They are
    only read: in the batch they stand as they were. A cell alone in its batch stays as it is.

    Args:
        fraction: Share of the genes that are exchanged, to the nearest number of genes.
        probability: Probability that a cell is changed.
        partners: Number of other cells, drawn with replacement, each of which gives an equal share
            of the exchanged genes.
        seed: Seed of genes and partners.
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        inputs: Normalized values [B, G], or of one cell [G].
        others: Values [N, G] of the cells to exchange with; by default those of ``inputs``, where
            a cell is never its own partner as long as there is another.
        aligned: Whether row i of ``others`` is the cell of row i of ``inputs`` (in another
            state), and therefore not its partner. N must then be B.
        training: Whether to change anything.
        index: Which draw, by its number from 0 on; by default the next (`RandomLayer`).

    Returns:
        Values [B, G].

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.layers import Crossover
    >>> cells = tf.constant([[1.0] * 8, [2.0] * 8])
    >>> views = Crossover(fraction=0.25, probability=1.0)(cells, training=True)
    >>> tf.reduce_sum(views, axis=1).numpy().tolist()
    [10.0, 14.0]

    Reference:
        CLEAR, Data augmentation (iv).
    """

    def __init__(
        self,
        fraction: float = 0.25,
        probability: float = 0.5,
        partners: int = 1,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(fraction=fraction, probability=probability, seed=seed, **kwargs)
        self.partners = checked_whole("partners", partners)

    def call(
        self,
        inputs: tf.Tensor,
        others: tf.Tensor | None = None,
        aligned: bool = False,
        training: bool | None = None,
        index: tf.Tensor | int | None = None,
    ) -> tf.Tensor:
        count = self._count(self._genes)
        if not training or count == 0 or self.probability == 0:
            return inputs
        draw, cells = self._draw(index), tf.shape(inputs)[0]
        if others is None:
            others, aligned = inputs, True
        others = tf.cast(others, inputs.dtype)
        if aligned:  # A step of 1 to B - 1 from the cell itself.
            step = 1 + draw.integers(tf.maximum(cells - 1, 1), [cells, self.partners])
            rows = (tf.range(cells)[:, tf.newaxis] + step) % cells
        else:
            rows = draw.integers(tf.shape(others)[0], [cells, self.partners])
        place = draw.places(cells, self._genes, self.probability)
        out = inputs
        for i in reversed(range(self.partners)):
            below = -(-count * (i + 1) // self.partners)
            out = tf.where(place < below, tf.gather(others, rows[:, i]), out)
        return out

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "partners": self.partners}


@serializable
class CrossoverMany(Crossover):
    """Exchanges some genes of a cell with several other cells in training: see `Crossover`.

    Args:
        fraction, probability, partners, seed: As in `Crossover`.
        **kwargs: Of `keras.layers.Layer`.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.layers import CrossoverMany
    >>> cell, others = tf.zeros([1, 8]), tf.ones([100, 8])
    >>> crossover = CrossoverMany(fraction=0.5, probability=1.0)
    >>> float(tf.reduce_sum(crossover(cell, others=others, training=True)))
    4.0

    Reference:
        CLEAR, Data augmentation (v).
    """

    def __init__(
        self,
        fraction: float = 0.25,
        probability: float = 0.5,
        partners: int = 4,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(fraction, probability, partners, seed, **kwargs)
