"""Normalization of counts inside a model."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from concerto_tf._keras import compute_dtype, keras, serializable


@serializable
class LogNormalize(keras.layers.Layer):
    """Scales every cell to the same total count, then takes ``log(1 + x)``.

    The layer is part of the model, so that an exported model takes raw counts. It always
    computes in float32 or wider, since a raw count does not fit into half precision.

    Args:
        target_sum: Total count per cell after scaling; ``None`` leaves values unchanged, for
            log-normalized input.
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        values: Counts [B, K] (any layout: padded nonzeros or all genes), float.
        total: Total count of each cell [B], or of the cell of each value [B, K]; by default the
            sum of the row of ``values``. Give it where that holds only some genes of the cell.

    Returns:
        Normalized values [B, K]. A cell without counts stays zero.

    Example:

    In front of any Keras model, which then takes raw counts:

    >>> import numpy as np
    >>> import tensorflow as tf
    >>> from concerto_tf.layers import LogNormalize
    >>> counts = tf.keras.Input([3])
    >>> model = tf.keras.Model(counts, tf.keras.layers.Dense(2)(LogNormalize()(counts)))
    >>> model(np.array([[1.0, 3.0, 0.0]], "float32")).shape.as_list()
    [1, 2]
    >>> np.expm1(LogNormalize(target_sum=100)(np.array([[1.0, 3.0, 0.0]]))).round(3).tolist()
    [[25.0, 75.0, 0.0]]

    Reference:
        Concerto, Methods, "Filtering, Pre-processing, and Normalization".
    """

    def __init__(self, target_sum: float | None = 1e4, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        if target_sum is not None and not target_sum > 0:
            raise ValueError(f"target_sum must be positive or None, not {target_sum!r}.")
        self.target_sum = target_sum

    def call(self, values: tf.Tensor, total: tf.Tensor | None = None) -> tf.Tensor:
        out_dtype = compute_dtype(self)
        values = tf.convert_to_tensor(values)
        if self.target_sum is not None:
            wide = tf.float64 if values.dtype == tf.float64 else tf.float32
            values = tf.cast(values, wide)
            if total is None:
                total = tf.reduce_sum(values, axis=-1)
            total = tf.cast(total, wide)
            if total.shape.rank == 1:
                total = total[:, tf.newaxis]
            values = tf.math.log1p(tf.math.divide_no_nan(values * self.target_sum, total))
        return tf.cast(values, out_dtype)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("autocast", None)
        return {**config, "target_sum": self.target_sum}
