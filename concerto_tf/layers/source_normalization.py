"""Batch normalization with statistics of the cells' own source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import (
    accumulation_dtype,
    compute_dtype,
    keras,
    serializable,
    state_weight,
    sum_over_replicas,
)
from concerto_tf.layers.directions import REMAINDER

Moments = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


def moments_by_source(x: tf.Tensor, source: tf.Tensor, n_sources: int) -> Moments:
    """Number, mean and variance of the cells of each source, over all replicas.

    Args:
        x: Features [B, F], float.
        source: Source code of each cell [B], int; codes outside ``[0, n_sources)`` belong to none.
        n_sources: Number of sources S.

    Returns:
        Counts [S], means [S, F] and (biased) variances [S, F]; zeros for a source without cells.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.layers.source_normalization import moments_by_source
    >>> x = tf.constant([[1.0], [3.0], [5.0]])
    >>> count, mean, variance = moments_by_source(x, tf.constant([0, 0, 1]), 2)
    >>> count.numpy().tolist(), mean.numpy().tolist(), variance.numpy().tolist()
    ([2.0, 1.0], [[2.0], [5.0]], [[1.0], [0.0]])
    """
    # A product with the membership matrix: a segment sum is far slower under XLA.
    member = tf.one_hot(source, n_sources, dtype=x.dtype)
    count, total = sum_over_replicas(
        tf.reduce_sum(member, axis=0), tf.matmul(member, x, transpose_a=True)
    )
    mean = tf.math.divide_no_nan(total, count[:, tf.newaxis])
    centered = x - tf.matmul(member, mean)
    (squares,) = sum_over_replicas(tf.matmul(member, tf.square(centered), transpose_a=True))
    return count, mean, tf.math.divide_no_nan(squares, count[:, tf.newaxis])


def merge_moments(first: Moments, second: Moments) -> Moments:
    """Moments of two groups of cells taken together (Chan's update).

    Args:
        first: Count [...], mean [..., F] and variance [..., F] of the one group.
        second: The same of the other.

    Returns:
        Count, mean and variance of both.
    """
    (n, mean, variance), (m, other_mean, other_variance) = first, second
    count = n + m
    share = tf.math.divide_no_nan(m, count)[..., tf.newaxis]
    shift = other_mean - mean
    merged = (1 - share) * variance + share * other_variance
    return count, mean + share * shift, merged + share * (1 - share) * tf.square(shift)


def pool_moments(moments: Moments) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean [F] and variance [F] over the cells of all sources.

    Args:
        moments: Counts [S], means [S, F] and variances [S, F].

    Returns:
        Mean and variance; 0 and 1 where no cell was ever counted.
    """
    count, mean, variance = moments
    total = tf.reduce_sum(count)
    share = tf.math.divide_no_nan(count, total)[:, tf.newaxis]
    pooled = tf.reduce_sum(share * mean, axis=0)
    spread = tf.reduce_sum(share * (variance + tf.square(mean - pooled)), axis=0)
    return pooled, tf.where(total > 0, spread, tf.ones_like(spread))


@serializable
class SourceBatchNormalization(keras.layers.Layer):
    """Batch normalization within the cells of one source (batch, donor, technology).

    In training every cell is normalized with the statistics that the cells of its own source
    have in the minibatch, over all replicas; the minibatch may mix sources as it likes. Scale and
    offset are shared. Moving statistics are kept per source. At inference a cell takes those of
    its source; a cell of a source never seen takes the pooled statistics of all sources.

    The statistics of a source reflect its technology, and its cell types too. An ``aligned`` layer
    restores what is due to cell types: each source has a factor and an offset that are applied
    after its statistics. They are 1 and 0 until `align` sets them, and are not trained.

    A source with fewer than ``min_cells`` cells in a minibatch says nothing about itself there:
    its cells take its moving statistics, and before those rest on as many cells the whole
    minibatch's. At inference such a source takes the pooled statistics.

    Args:
        n_sources: Number of sources S. With 1 this is synchronized batch normalization.
        momentum: Share of the past that the moving statistics keep at each minibatch with cells
            of the source. They weigh every cell seen, so there is no bias towards the start.
        epsilon: Added to the variance.
        min_cells: Fewest cells of a source whose minibatch statistics are used.
        aligned: Whether sources have factors and offsets of their own.
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        x: Features [B, F], float.
        source: Source code per cell [B], int; -1 for a source never seen. ``None``: all cells
            are of source 0.
        training: Whether to use the minibatch's statistics and to update the moving ones.
        measured: Which features were measured at all [F], bool, at inference; the others take the
            source's mean, whatever stands in ``x``.

    Returns:
        Normalized features [B, F].

    Example:

    Two sources that differ by a shift are the same after the layer.

    >>> import tensorflow as tf
    >>> from concerto_tf.layers import SourceBatchNormalization
    >>> x = tf.constant([[0.0], [2.0], [10.0], [12.0]])
    >>> layer = SourceBatchNormalization(n_sources=2, epsilon=0.0, min_cells=2)
    >>> layer(x, source=tf.constant([0, 0, 1, 1]), training=True).numpy().ravel().tolist()
    [-1.0, 1.0, -1.0, 1.0]

    In anybody's Keras model, with the source as a second input:

    >>> cells, source = tf.keras.Input([50]), tf.keras.Input([], dtype="int32")
    >>> hidden = SourceBatchNormalization(n_sources=2)(cells, source=source)
    >>> model = tf.keras.Model([cells, source], tf.keras.layers.Dense(8)(hidden))
    >>> model([tf.ones([3, 50]), tf.constant([0, 1, 1])]).shape.as_list()
    [3, 8]

    Reference:
        Concerto, Methods, "Source-aware Batch Normalization for data-integration".
    """

    def __init__(
        self,
        n_sources: int = 1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        min_cells: int = 4,
        aligned: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if n_sources < 1 or not 0 <= momentum < 1 or min_cells < 2:
            raise ValueError(
                "SourceBatchNormalization needs n_sources >= 1, 0 <= momentum < 1 and "
                f"min_cells >= 2, not {n_sources}, {momentum} and {min_cells}."
            )
        self.n_sources = int(n_sources)
        self.momentum = float(momentum)
        self.epsilon = float(epsilon)
        self.min_cells = int(min_cells)
        self.aligned = bool(aligned)

    def build(self, input_shape: Any) -> None:
        features = int(tuple(input_shape)[-1])
        self.gamma = self.add_weight(name="gamma", shape=(features,), initializer="ones")
        self.beta = self.add_weight(name="beta", shape=(features,), initializer="zeros")
        dtype = accumulation_dtype(compute_dtype(self)).name
        shape = (self.n_sources, features)
        self.moving_count = state_weight(self, "moving_count", (self.n_sources,), dtype)
        self.moving_mean = state_weight(self, "moving_mean", shape, dtype)
        self.moving_variance = state_weight(self, "moving_variance", shape, dtype)
        if self.aligned:
            self.source_factor = state_weight(self, "source_factor", shape, dtype, "ones")
            self.source_offset = state_weight(self, "source_offset", shape, dtype)
        super().build(input_shape)

    @property
    def moving_moments(self) -> Moments:
        """Moving counts [S], means [S, F] and variances [S, F] of the sources."""
        return (
            tf.convert_to_tensor(self.moving_count),
            tf.convert_to_tensor(self.moving_mean),
            tf.convert_to_tensor(self.moving_variance),
        )

    @property
    def moving_weights(self) -> tuple[Any, Any, Any]:
        """The weights that hold `moving_moments`."""
        return self.moving_count, self.moving_mean, self.moving_variance

    def take_scales(self, scales: np.ndarray) -> None:
        """Sets the scales of the first features, and makes those of all others small.

        Args:
            scales: [k] of the first features.
        """
        gamma = np.full(self.gamma.shape, REMAINDER / 2, np.float32)
        gamma[: len(scales)] = scales
        self.gamma.assign(gamma)

    def align(self, factor: np.ndarray, offset: np.ndarray) -> None:
        """Sets the factor and the offset of each source, which follow its statistics.

        Args:
            factor: [S, F].
            offset: [S, F], in units of the normalized features.
        """
        if not self.aligned:
            raise ValueError("only a layer with aligned=True has factors and offsets of sources")
        self.source_factor.assign(factor)
        self.source_offset.assign(offset)

    def take_sources(self, other: SourceBatchNormalization, rows: Sequence[int]) -> None:
        """Copies the statistics of sources from a layer that may differ in its sources only.

        Args:
            other: The other layer.
            rows: For each source of this layer, its row in the other; -1 for one the other does
                not know. That begins with the pooled statistics, and the weight of `min_cells`.
        """
        moments = other.moving_moments
        found = tf.constant(rows)
        known, row = found >= 0, tf.maximum(found, 0)
        seen = tf.minimum(tf.reduce_sum(moments[0]), tf.cast(self.min_cells, moments[0].dtype))
        count = tf.where(known, tf.gather(moments[0], row), seen)
        self.moving_count.assign(count)
        pooled = pool_moments(moments)
        for weight, of_sources, of_all in zip(
            (self.moving_mean, self.moving_variance), moments[1:], pooled, strict=True
        ):
            weight.assign(tf.where(known[:, tf.newaxis], tf.gather(of_sources, row), of_all))
        if self.aligned:
            factor, offset = (
                tf.gather(tf.convert_to_tensor(weight), row)
                for weight in (other.source_factor, other.source_offset)
            )
            self.align(
                tf.where(known[:, tf.newaxis], factor, 1.0),
                tf.where(known[:, tf.newaxis], offset, 0.0),
            )

    def call(
        self,
        x: tf.Tensor,
        source: tf.Tensor | None = None,
        training: bool | None = None,
        measured: tf.Tensor | None = None,
    ) -> tf.Tensor:
        dtype = compute_dtype(self)
        x = tf.cast(x, accumulation_dtype(dtype))
        if source is None:
            source = tf.zeros(tf.shape(x)[:1], tf.int32)
        if training:
            mean, variance, own = self._training_statistics(x, source)
        else:
            mean, variance, own = self._inference_statistics(source)
        factor, offset = tf.math.rsqrt(variance + self.epsilon), None
        if self.aligned:
            # They stand behind the statistics of the source itself, and of no other.
            own, width = own[:, tf.newaxis], x.shape[-1:]
            of_source, offset = self._of_cells(
                source,
                tf.where(own, tf.cast(self.source_factor, x.dtype), 1),
                tf.where(own, tf.cast(self.source_offset, x.dtype), 0),
                tf.ones(width, x.dtype),
                tf.zeros(width, x.dtype),
            )
            factor *= of_source
        gamma = tf.cast(self.gamma, x.dtype)
        factor *= gamma
        x = (x - mean) * factor
        if measured is not None:
            x = tf.where(measured, x, tf.zeros_like(x))
        if offset is not None:
            x += offset * gamma
        return tf.cast(x + tf.cast(self.beta, x.dtype), dtype)

    def _training_statistics(
        self, x: tf.Tensor, source: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Mean and variance for every cell [B, F], and which sources [S] have their own.

        Updates the moving statistics.
        """
        batch = moments_by_source(x, source, self.n_sources)
        moving = self.moving_moments
        count, mean, variance = batch
        known = moving[0] >= self.min_cells
        pooled_mean, pooled_variance = pool_moments(batch)
        enough = (count >= self.min_cells)[:, tf.newaxis]
        mean = tf.where(enough, mean, tf.where(known[:, tf.newaxis], moving[1], pooled_mean))
        variance = tf.where(
            enough, variance, tf.where(known[:, tf.newaxis], moving[2], pooled_variance)
        )
        self._update(moving, batch)
        of_cells = self._of_cells(source, mean, variance, pooled_mean, pooled_variance)
        return *of_cells, enough[:, 0] | known

    def _inference_statistics(self, source: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        moving = self.moving_moments
        pooled_mean, pooled_variance = pool_moments(moving)
        seen = moving[0] >= self.min_cells
        mean = tf.where(seen[:, tf.newaxis], moving[1], pooled_mean)
        variance = tf.where(seen[:, tf.newaxis], moving[2], pooled_variance)
        of_cells = self._of_cells(source, mean, variance, pooled_mean, pooled_variance)
        return *of_cells, seen

    def _of_cells(
        self,
        source: tf.Tensor,
        mean: tf.Tensor,
        variance: tf.Tensor,
        pooled_mean: tf.Tensor,
        pooled_variance: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Rows of what sources have for each cell, and the pooled ones for a source of none."""
        if mean.shape[0] == 1:  # One row for all: broadcasting saves [B, F] copies.
            return mean, variance
        n_sources = tf.shape(mean)[0]
        known = ((source >= 0) & (source < tf.cast(n_sources, source.dtype)))[:, tf.newaxis]
        row = tf.clip_by_value(source, 0, tf.cast(n_sources - 1, source.dtype))
        return (
            tf.where(known, tf.gather(mean, row), pooled_mean),
            tf.where(known, tf.gather(variance, row), pooled_variance),
        )

    def _update(self, moving: Moments, batch: Moments) -> None:
        batch = tuple(tf.stop_gradient(part) for part in batch)
        decay = tf.where(batch[0] > 0, tf.cast(self.momentum, batch[0].dtype), 1)
        merged = merge_moments((moving[0] * decay, moving[1], moving[2]), batch)
        self.moving_count.assign(merged[0])
        self.moving_mean.assign(merged[1])
        self.moving_variance.assign(merged[2])

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "n_sources": self.n_sources,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "min_cells": self.min_cells,
            "aligned": self.aligned,
        }
