"""Attention over all genes of a cell at the cost of its nonzero genes."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import accumulation_dtype, compute_dtype, keras, serializable
from concerto_tf.layers.directions import take_directions


def scatter_to_dense(
    genes: tf.Tensor, values: tf.Tensor, n_genes: int, rows: tf.Tensor | None = None
) -> tf.Tensor:
    """Spreads padded nonzeros over all genes.

    Args:
        genes: Gene indices [B, K], int, in ``[0, n_genes)``. A gene that occurs more than once in
            a cell is summed, so padding is gene 0 with value 0.
        values: Values [B, K], float.
        n_genes: Number of genes G.
        rows: The cell that each value belongs to [B, K], int, where values of one cell may stand
            in the row of another (packed batches); by default the row they stand in.

    Returns:
        Dense values [B, G] of the dtype of ``values``.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.layers import scatter_to_dense
    >>> scatter_to_dense(tf.constant([[2, 0]]), tf.constant([[5.0, 0.0]]), 4).numpy().tolist()
    [[0.0, 0.0, 5.0, 0.0]]
    """
    cells = tf.shape(genes)[0]
    if rows is None:
        rows = tf.broadcast_to(tf.range(cells)[:, tf.newaxis], tf.shape(genes))
    index = tf.stack([tf.cast(rows, genes.dtype), genes], axis=-1)
    return tf.scatter_nd(index, values, tf.stack([cells, n_genes]))


class _Cells:
    """Sums over the values of each cell, whether they stand in its own row or packed."""

    def __init__(self, genes: tf.Tensor, rows: tf.Tensor | None) -> None:
        self._shape = tf.shape(genes)
        self._rows = rows

    def sum(self, x: tf.Tensor) -> tf.Tensor:
        """Sum [B] over each cell's values of ``x`` [B, K]."""
        if self._rows is None:
            return tf.reduce_sum(x, axis=-1)
        return tf.math.unsorted_segment_sum(x, self._rows, self._shape[0])

    def max(self, x: tf.Tensor) -> tf.Tensor:
        """Largest value [B] of each cell in ``x`` [B, K]."""
        if self._rows is None:
            return tf.reduce_max(x, axis=-1)
        return tf.math.unsorted_segment_max(x, self._rows, self._shape[0])

    def count(self, dtype: tf.DType) -> tf.Tensor:
        """Number of places [B], padding included, that each cell has."""
        if self._rows is None:
            return tf.fill(self._shape[:1], tf.cast(self._shape[1], dtype))
        return self.sum(tf.ones(self._shape, dtype))

    def spread(self, x: tf.Tensor) -> tf.Tensor:
        """A quantity of the cells [B] at each of their values, to go with [B, K]."""
        return x[:, tf.newaxis] if self._rows is None else tf.gather(x, self._rows)


@serializable
class GeneAttention(keras.layers.Layer):
    """Aggregates the genes of a cell into one vector by attention, exactly and sparsely.

    Every gene g has an embedding ``e_g``; with the value ``v_g`` of a cell it becomes
    ``h_g = v_g e_g`` and scores ``u . tanh(W h_g + b)``. The softmax runs over **all** genes, also
    those with value 0: they all score ``u . tanh(b)`` and add nothing to the weighted sum, so
    their part of the denominator has a closed form and no zero is ever stored or multiplied.

    Args:
        n_genes: Number of genes G of the vocabulary.
        units: Width d of the gene embeddings.
        attention_units: Width of the attention's hidden layer; the paper's is ``units``, the
            default. It is what the cost per nonzero is proportional to.
        embeddings_initializer: Initializer of the gene embeddings.
        kernel_initializer: Initializer of the attention's hidden layer.
        context_initializer: Initializer of the context vector.
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        genes: Gene indices [B, K], int32, padded with 0.
        values: Normalized values [B, K], float, padded with 0.0. K may be anything: padding
            counts as further zeros and needs no mask. A gene must not occur twice with a value.
        rows: The cell that each value belongs to [B, K], for packed batches; see
            `scatter_to_dense`.
        unmeasured: Values [G] that genes which were not measured take in every cell, 0 for those
            that were. A gene with a value here must not be listed.

    Returns:
        Cell vectors [B, d].

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.layers import GeneAttention
    >>> genes = tf.keras.Input([None], dtype="int32")
    >>> values = tf.keras.Input([None])
    >>> cell = GeneAttention(n_genes=20_000, units=16)(genes, values)
    >>> model = tf.keras.Model([genes, values], tf.keras.layers.Dense(3)(cell))
    >>> model([tf.constant([[3, 17, 0]]), tf.constant([[1.2, 0.7, 0.0]])]).shape.as_list()
    [1, 3]

    Reference:
        Concerto, equations 1 to 5.
    """

    def __init__(
        self,
        n_genes: int,
        units: int = 128,
        attention_units: int | None = None,
        embeddings_initializer: Any = "uniform",
        kernel_initializer: Any = "glorot_uniform",
        context_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if n_genes < 1 or units < 1:
            raise ValueError(f"n_genes and units must be positive, not {n_genes} and {units}.")
        self.n_genes = int(n_genes)
        self.units = int(units)
        self.attention_units = int(attention_units or units)
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.context_initializer = keras.initializers.get(context_initializer)

    def build(self, input_shape: Any = None) -> None:
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.n_genes, self.units),
            initializer=self.embeddings_initializer,
        )
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.units, self.attention_units),
            initializer=self.kernel_initializer,
        )
        self.bias = self.add_weight(name="bias", shape=(self.attention_units,), initializer="zeros")
        self.context = self.add_weight(
            name="context", shape=(self.attention_units, 1), initializer=self.context_initializer
        )
        super().build(input_shape)

    def take_directions(self, directions: np.ndarray) -> None:
        """Initializes the gene embeddings, so that cell vectors hold given combinations of genes.

        The gene embeddings become the directions, so that attention, which is nearly uniform
        before training, gives a cell's values along them, divided by the root of the number of
        genes.

        Args:
            directions: [G, k] with k at most ``units``.
        """
        take_directions(self.embeddings, directions * np.sqrt(self.n_genes))

    def call(
        self,
        genes: tf.Tensor,
        values: tf.Tensor,
        rows: tf.Tensor | None = None,
        unmeasured: tf.Tensor | None = None,
    ) -> tf.Tensor:
        return self._attend(genes, values, rows, unmeasured)[0]

    def attention_weights(
        self,
        genes: tf.Tensor,
        values: tf.Tensor,
        rows: tf.Tensor | None = None,
        unmeasured: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """The share of attention each listed gene has among all genes of the cell.

        Args:
            genes: Gene indices [B, K].
            values: Normalized values [B, K].
            rows: The cell that each value belongs to [B, K], for packed batches.
            unmeasured: See the class.

        Returns:
            Attention weights [B, K] (alpha of equation 4); over all genes, zeros included, they
            add up to one in each cell.
        """
        _, weight, denominator = self._attend(genes, values, rows, unmeasured)
        return weight / _Cells(genes, rows).spread(denominator)

    def _attend(
        self,
        genes: tf.Tensor,
        values: tf.Tensor,
        rows: tf.Tensor | None,
        unmeasured: tf.Tensor | None,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Equations 1 to 5, over all genes.

        Returns:
            Cell vectors [B, d], unnormalized weights [B, K] and their sum over all genes [B].
        """
        dtype = compute_dtype(self)
        wide = accumulation_dtype(dtype)
        cells = _Cells(genes, rows)
        embeddings = tf.cast(self.embeddings, dtype)
        context = tf.cast(self.context, dtype)
        bias = tf.cast(self.bias, dtype)
        values = tf.cast(values, dtype)
        # Equations 1 to 3. W once per gene and step, not once per nonzero: W (v e) = v (W e).
        projected = tf.matmul(embeddings, tf.cast(self.kernel, dtype))

        def score(hidden: tf.Tensor) -> tf.Tensor:
            return tf.cast(tf.squeeze(tf.matmul(tf.tanh(hidden + bias), context), -1), wide)

        zero_score = score(tf.zeros_like(projected[:1]))
        gene_score = score(values[..., tf.newaxis] * tf.gather(projected, genes))
        top = tf.reduce_max(zero_score)
        largest = tf.stop_gradient(tf.maximum(cells.max(gene_score), top))
        # Equation 4: numerators, and the sum over all genes that they are divided by.
        weight = tf.exp(gene_score - cells.spread(largest))
        n_zero = self.n_genes - cells.count(wide)
        denominator = cells.sum(weight) + n_zero * tf.exp(zero_score - largest)
        mass = weight * tf.cast(values, wide)
        background = 0.0
        if unmeasured is not None:
            # They stand in every cell alike: their sums replace those of as many zero genes.
            unmeasured = tf.cast(unmeasured, dtype)
            constant = tf.cast(tf.not_equal(unmeasured, 0), wide)
            rescale = tf.exp(top - largest)
            own = tf.exp(score(unmeasured[:, tf.newaxis] * projected) - top)
            denominator += rescale * tf.reduce_sum(constant * (own - 1))
            added = tf.cast(constant * own * tf.cast(unmeasured, wide), dtype)
            added = tf.matmul(added[tf.newaxis], embeddings)
            background = rescale[:, tf.newaxis] * tf.cast(added, wide)
        # Equation 5. A dense product is faster here than any sparse one.
        dense = scatter_to_dense(genes, tf.cast(mass, dtype), self.n_genes, rows)
        summed = tf.cast(tf.matmul(dense, embeddings), wide) + background
        return tf.cast(summed / denominator[:, tf.newaxis], dtype), weight, denominator

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (tuple(input_shape)[0], self.units)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "n_genes": self.n_genes,
            "units": self.units,
            "attention_units": self.attention_units,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "context_initializer": keras.initializers.serialize(self.context_initializer),
        }
