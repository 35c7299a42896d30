"""Random numbers of layers, from a counter that is saved with the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from concerto_tf._keras import compute_dtype, keras, replica_index, state_weight
from concerto_tf.errors import InputError, checked_share

#: A shape, or its parts, known in advance or not.
Shape: TypeAlias = tf.Tensor | Sequence[int | tf.Tensor]


class Draw:
    """The random numbers of one call of a layer.

    Bits are drawn from a named counter-based generator, as XLA's own is another one and slow on
    CPUs. All decisions are taken on integers, as TensorFlow and XLA make different floats of the
    same bits. Bits for every value are costly: which genes to change is decided without (`places`).

    Args:
        stream: Seed of the layer on this replica, int64 scalar.
        counter: Number of earlier calls, int64 scalar.
    """

    def __init__(self, stream: tf.Tensor, counter: tf.Tensor) -> None:
        self._stream = stream
        self._counter = counter
        self._parts = 0

    def bits(self, shape: Shape) -> tf.Tensor:
        """Random bits, uint32, other ones at every call."""
        # The first part of a draw has the counter itself, all others negative numbers.
        part = self._parts
        self._parts += 1
        counter = -(64 * self._counter + part) if part else self._counter
        seed = tf.stack([self._stream, counter])
        return self._apart(
            lambda: tf.random.stateless_uniform(shape, seed, None, None, tf.uint32, alg="philox"),
            lambda: tf.zeros(shape, tf.uint32),
        )

    def hold(self, x: tf.Tensor) -> tf.Tensor:
        """The tensor, computed once where several things are made of it."""
        return self._apart(lambda: tf.identity(x), lambda: tf.zeros_like(x))

    def _apart(self, compute: Callable, never: Callable) -> tf.Tensor:
        # XLA would compute the bits again inside every loop that reads them, four times over for
        # each value. It never looks through a condition, and cannot know that this one is true.
        return tf.cond(self._counter >= 0, compute, never)

    def integers(self, n: int | tf.Tensor, shape: Shape) -> tf.Tensor:
        """Uniform integers in ``[0, n)``, int32."""
        return tf.cast(self.bits(shape) % tf.cast(n, tf.uint32), tf.int32)

    def chance(self, probability: float, shape: Shape) -> tf.Tensor:
        """True with a probability (to the precision of 23 bits), bool."""
        bits = tf.bitwise.right_shift(self.bits(shape), tf.constant(9, tf.uint32))
        return bits < tf.constant(math.ceil(probability * 2**23), tf.uint32)

    def order(self, n: int) -> tf.Tensor:
        """The integers below n in random order, int32 [n]."""
        return tf.argsort(tf.bitcast(self.bits([n]), tf.int32), stable=True)

    def places(self, cells: tf.Tensor, n: int, probability: float) -> tf.Tensor:
        """A random order of the genes for every cell: those below c are c genes chosen at random.

        A cell turns one random order by a number of its own, takes the result through a second
        random order, and turns that. So the genes chosen in a cell are exactly as many as wanted
        and a uniformly random set of that size, and those chosen in two cells overlap nearly as two
        independent sets do; sorting random numbers for every cell would cost ten times as much.

        Args:
            cells: Number of cells B.
            n: Number of genes G.
            probability: Probability that a cell takes part.

        Returns:
            The place of each gene in the cell's order, int32 [B, G]; n for all genes of a cell
            that takes no part.
        """
        first, second = self.order(n), self.order(n)
        turned = first + self.integers(n, [cells, 1])
        place = tf.gather(tf.tile(second, [2]), turned) + self.integers(n, [cells, 1])
        place = tf.where(place >= n, place - n, place)
        if probability == 1:
            return place
        return tf.where(self.chance(probability, [cells, 1]), place, n)


class CellLayer(keras.layers.Layer):
    """Base of layers on the dense values of cells, which may be whole numbers or one cell alone.

    Whole numbers are cast to the dtype that the layer computes in, and a single cell [G] is a
    minibatch of one. So the layer works in `tf.data.Dataset.map`, before or after batching.
    """

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        name = type(self).__name__
        if isinstance(inputs, tf.SparseTensor | tf.RaggedTensor):
            kind = type(inputs).__name__
            raise InputError(
                f"{name} takes dense values, not a {kind}; call tf.sparse.to_dense, or to_tensor, "
                "before it"
            )
        if not isinstance(inputs, tf.Tensor | np.ndarray | list | tuple | tf.Variable):
            return super().__call__(inputs, *args, **kwargs)  # of a model that is being described
        x = tf.convert_to_tensor(inputs)
        if not x.dtype.is_floating:
            if not (x.dtype.is_integer or x.dtype.is_bool):
                raise InputError(f"{name} takes numbers, not {x.dtype.name}")
            x = tf.cast(x, compute_dtype(self))
        if x.shape.rank != 1:
            return super().__call__(x, *args, **kwargs)
        return super().__call__(x[tf.newaxis], *args, **kwargs)[0]

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return tuple(input_shape)


class RandomLayer(CellLayer):
    """Base of layers that draw anew at every call in training.

    Unlike Keras' own random layers they draw from a counter that is saved with the model: the same
    seed gives the same on every Keras, inside and outside XLA, and after a resumed training.
    Replicas draw differently.

    Where calls may overtake each other, as in a parallel `tf.data.Dataset.map`, the counter says
    nothing of which call is which. Called with ``index`` a layer draws by that number and its seed
    alone, and the counter stays: ``data.enumerate().map(lambda i, x: layer(x, training=True,
    index=i), num_parallel_calls=tf.data.AUTOTUNE)`` gives the same with the same seed.

    Args:
        seed: Seed of what is drawn.
        **kwargs: Of `keras.layers.Layer`.
    """

    def __init__(self, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed = int(seed)
        # Here and not in `build`: within a dataset no weight can be made.
        self.draws = state_weight(self, "draws", (), "int64")

    def _draw(self, index: tf.Tensor | int | None = None) -> Draw:
        """The random numbers of an index, or of this call; the next call has others."""
        if index is None:
            counter = tf.convert_to_tensor(self.draws)
            self.draws.assign_add(tf.ones((), tf.int64))
        else:
            counter = tf.cast(index, tf.int64)
        return Draw(tf.cast(replica_index(), tf.int64) * 1_000_003 + self.seed, counter)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "seed": self.seed}


class GeneAugmentation(RandomLayer):
    """Base of layers that change a share of the genes in a share of the cells.

    What happens within a cell is exactly random, and the cells of one call are independent of each
    other two by two (see `Draw.places`).

    Args:
        fraction: Share of the genes that are changed, to the nearest number of genes.
        probability: Probability that a cell is changed.
        seed: Seed of what is drawn.
        **kwargs: Of `keras.layers.Layer`.
    """

    def __init__(self, fraction: float, probability: float, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(seed=seed, **kwargs)
        self.fraction = checked_share("fraction", fraction)
        self.probability = checked_share("probability", probability)

    def build(self, input_shape: Any) -> None:
        shape = tuple(input_shape)
        if len(shape) != 2 or shape[1] is None:
            raise ValueError(
                f"{type(self).__name__} takes dense values [cells, genes] with a fixed number of "
                f"genes, not shape {shape}; see scatter_to_dense for padded nonzeros."
            )
        self._genes = int(shape[1])
        super().build(input_shape)

    def _count(self, things: float) -> int:
        """How many of some things to change."""
        return int(self.fraction * things + 0.5)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "fraction": self.fraction, "probability": self.probability}
