"""Batches without most of their padding: cells with many genes stand in for those with few."""

from __future__ import annotations

import math

import tensorflow as tf


def pack(
    genes: tf.Tensor, values: tf.Tensor, lengths: tf.Tensor, group: int, width: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Lets the cells of a group share their places.

    Args:
        genes: Gene indices of all cells, one cell after the other [T], int32.
        values: Their values [T], float32.
        lengths: Number of them that each cell has [B], int32.
        group: Cells per group, a divisor of B.
        width: Places per row W. Where a group needs more, the whole batch is as many times wider:
            nothing is ever lost, and there are few shapes.

    Returns:
        Genes [B, W], values [B, W], and offset [B, W], int32: how many rows further down the cell
        stands that a value belongs to. Offsets, and not rows, so that a slice of whole groups is
        a packed batch too.
    """
    cells = tf.shape(lengths)[0]
    loads = tf.reduce_sum(tf.reshape(lengths, [-1, group]), 1)
    times = tf.maximum(1, -(-tf.reduce_max(loads) // (group * width)))
    # Powers of two, since every further shape is compiled anew.
    doublings = tf.math.ceil(tf.math.log(tf.cast(times, tf.float64)) / math.log(2.0) - 1e-9)
    row = width * 2 ** tf.cast(doublings, tf.int32)
    places = group * row

    def fill(x: tf.Tensor) -> tf.Tensor:
        """One group after the other, each with its values first and zeros behind them."""
        ragged = tf.RaggedTensor.from_row_lengths(x, loads, validate=False)
        dense = ragged.to_tensor(shape=tf.stack([tf.size(loads), places]))
        return tf.reshape(dense, [cells, row])

    own = tf.range(cells) % group
    # The cell of a place goes up by one where a further cell starts.
    starts = tf.cumsum(tf.reshape(lengths, [-1, group]), axis=1)[:, :-1]
    index = tf.stack(
        [tf.repeat(tf.range(tf.size(loads)), group - 1), tf.reshape(starts, [-1])], axis=1
    )
    steps = tf.scatter_nd(
        index, tf.ones([tf.size(starts)], tf.int32), tf.stack([tf.size(loads), places + 1])
    )
    cell = tf.cumsum(steps, axis=1)[:, :-1]
    # A place in row r of its group that holds a value of the group's row c is c - r rows off.
    # Free places hold gene 0, value 0 and count as a zero of the group's last cell.
    return fill(genes), fill(values), tf.reshape(cell, [cells, row]) - own[:, tf.newaxis]
