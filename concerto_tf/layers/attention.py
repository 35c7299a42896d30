"""Attention over all genes of a cell at the cost of its nonzero genes."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from concerto_tf._keras import accumulation_dtype, compute_dtype, keras, serializable


def scatter_to_dense(genes: tf.Tensor, values: tf.Tensor, n_genes: int) -> tf.Tensor:
    """Spreads padded nonzeros over all genes.

    Args:
        genes: Gene indices [B, K], int, in ``[0, n_genes)``. A gene that occurs more than once in
            a cell is summed, so padding is gene 0 with value 0.
        values: Values [B, K], float.
        n_genes: Number of genes G.

    Returns:
        Dense values [B, G] of the dtype of ``values``.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.layers import scatter_to_dense
    >>> scatter_to_dense(tf.constant([[2, 0]]), tf.constant([[5.0, 0.0]]), 4).numpy().tolist()
    [[0.0, 0.0, 5.0, 0.0]]
    """
    cells = tf.shape(genes)[0]
    row = tf.broadcast_to(tf.range(cells, dtype=genes.dtype)[:, tf.newaxis], tf.shape(genes))
    index = tf.stack([row, genes], axis=-1)
    return tf.scatter_nd(index, values, tf.stack([cells, n_genes]))


@serializable
class GeneAttention(keras.layers.Layer):
    """Aggregates the genes of a cell into one vector by attention, exactly and sparsely.

    Every gene g has an embedding ``e_g``; with the value ``v_g`` of a cell it becomes
    ``h_g = v_g e_g`` and scores ``u . tanh(W h_g + b)``. The softmax runs over **all** genes, also
    those with value 0: they all score ``u . tanh(b)`` and add nothing to the weighted sum, so
    their part of the denominator has a closed form and no zero is ever stored or multiplied.

    With ``value_affine=True`` a learned scale and shift act on the values first. Zero genes then
    differ from each other; their sums over all genes are computed once per step and corrected
    for the genes the cell does express, so the cost stays that of the nonzeros.

    Args:
        n_genes: Number of genes G of the vocabulary.
        units: Width d of the gene embeddings and of the attention's hidden layer.
        value_affine: Whether values pass through a learned ``scale * v + shift`` first.
        embeddings_initializer: Initializer of the gene embeddings.
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        genes: Gene indices [B, K], int32, padded with 0.
        values: Normalised values [B, K], float, padded with 0.0. K may be anything: padding
            counts as further zeros and needs no mask. A gene must not occur twice with a value.

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
        value_affine: bool = False,
        embeddings_initializer: Any = "uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if n_genes < 1 or units < 1:
            raise ValueError(f"n_genes and units must be positive, not {n_genes} and {units}.")
        self.n_genes = int(n_genes)
        self.units = int(units)
        self.value_affine = bool(value_affine)
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)

    def build(self, input_shape: Any = None) -> None:
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.n_genes, self.units),
            initializer=self.embeddings_initializer,
        )
        self.kernel = self.add_weight(
            name="kernel", shape=(self.units, self.units), initializer="glorot_uniform"
        )
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")
        self.context = self.add_weight(
            name="context", shape=(self.units, 1), initializer="glorot_uniform"
        )
        if self.value_affine:
            self.value_scale = self.add_weight(name="value_scale", shape=(), initializer="ones")
            self.value_shift = self.add_weight(name="value_shift", shape=(), initializer="zeros")
        super().build(input_shape)

    def call(self, genes: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        return self._attend(genes, values)[0]

    def attention_weights(self, genes: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """The share of attention each listed gene has among all genes of the cell.

        Args:
            genes: Gene indices [B, K].
            values: Normalised values [B, K].

        Returns:
            Attention weights [B, K] (alpha of equation 4); over all genes, zeros included, they
            add up to one.
        """
        _, weight, denominator = self._attend(genes, values)
        return weight / denominator[:, tf.newaxis]

    def _attend(
        self, genes: tf.Tensor, values: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Cell vectors [B, d], unnormalised weights [B, K] and their sum over all genes [B]."""
        dtype = compute_dtype(self)
        wide = accumulation_dtype(dtype)
        embeddings = tf.cast(self.embeddings, dtype)
        context = tf.cast(self.context, dtype)
        bias = tf.cast(self.bias, dtype)
        values = tf.cast(values, dtype)
        # W once per gene and step instead of once per nonzero: W (v e) = v (W e).
        projected = tf.matmul(embeddings, tf.cast(self.kernel, dtype))

        def score(hidden: tf.Tensor) -> tf.Tensor:
            return tf.cast(tf.squeeze(tf.matmul(tf.tanh(hidden + bias), context), -1), wide)

        if self.value_affine:
            scale = tf.cast(self.value_scale, dtype)
            shift = tf.cast(self.value_shift, dtype)
            shifted = scale * values + shift
            # A listed gene replaces its own zero term. Padding replaces nothing.
            listed = tf.cast(tf.not_equal(values, 0), wide)
            zero_score = score(shift * projected)
        else:
            shifted = values
            zero_score = score(tf.zeros_like(projected[:1]))

        gene_score = score(shifted[..., tf.newaxis] * tf.gather(projected, genes))
        largest = tf.stop_gradient(
            tf.maximum(tf.reduce_max(gene_score, axis=-1), tf.reduce_max(zero_score))
        )
        weight = tf.exp(gene_score - largest[:, tf.newaxis])
        if self.value_affine:
            # Relative to the largest zero score, so that the sums over all genes are shared.
            top = tf.stop_gradient(tf.reduce_max(zero_score))
            zero_weight = tf.exp(zero_score - top)
            rescale = tf.exp(top - largest)[:, tf.newaxis]
            own_zero = tf.gather(zero_weight, genes) * rescale
            denominator = tf.reduce_sum(zero_weight) * rescale[:, 0] + tf.reduce_sum(
                listed * (weight - own_zero), axis=-1
            )
            mass = listed * (weight * tf.cast(shifted, wide) - own_zero * tf.cast(shift, wide))
            all_zero = tf.matmul(
                tf.cast(zero_weight * tf.cast(shift, wide), dtype)[tf.newaxis], embeddings
            )
            background = rescale * tf.cast(all_zero, wide)
            weight = listed * weight
        else:
            n_zero = tf.cast(self.n_genes - tf.shape(genes)[1], wide)
            zero_weight = tf.exp(zero_score - largest)
            denominator = tf.reduce_sum(weight, axis=-1) + n_zero * zero_weight
            mass = weight * tf.cast(values, wide)
            background = 0.0
        # A dense product is faster here than any sparse one (see the architecture's figures).
        dense = scatter_to_dense(genes, tf.cast(mass, dtype), self.n_genes)
        summed = tf.cast(tf.matmul(dense, embeddings), wide) + background
        return tf.cast(summed / denominator[:, tf.newaxis], dtype), weight, denominator

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (tuple(input_shape)[0], self.units)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "n_genes": self.n_genes,
            "units": self.units,
            "value_affine": self.value_affine,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
        }
