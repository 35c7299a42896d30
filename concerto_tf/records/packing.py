"""Batches without most of their padding: cells with many genes stand in for those with few."""

from __future__ import annotations

import math

import tensorflow as tf

#: Cells that share their places, at most. More would waste less; but a batch is divided between
#: replicas, and no cell may stand on two of them.
GROUP_CELLS = 32
#: Places per cell, relative to the mean; a group of 32 that needs more is rare.
_ROOM = 1.5
_MULTIPLE = 16


def group_size(batch_size: int, replicas: int = 1) -> int:
    """Cells that share their places: the largest divisor of a replica's batch up to 32."""
    cells = batch_size // replicas
    return next(n for n in range(min(GROUP_CELLS, cells), 0, -1) if cells % n == 0)


def packed_width(mean_nonzeros: float, max_nonzeros: int, group: int) -> int:
    """Places per row of a packed batch."""
    if group == 1:
        return max(1, max_nonzeros)
    wanted = math.ceil(_ROOM * mean_nonzeros / _MULTIPLE) * _MULTIPLE
    return max(1, min(max(wanted, _MULTIPLE), max_nonzeros))


def pack(
    genes: tf.Tensor, values: tf.Tensor, wanted: tf.Tensor, group: int, width: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Lets the cells of a group share their places.

    Args:
        genes: Gene indices [B, K], int32.
        values: Values [B, K], float32.
        wanted: Which of them to keep [B, K], bool.
        group: Cells per group, a divisor of B.
        width: Places per row W. Where a group needs more, the whole batch is as many times wider:
            nothing is ever lost, and there are few shapes.

    Returns:
        Genes [B, W], values [B, W], and offset [B, W], int32: how many rows further down the cell
        stands that a value belongs to. Offsets, and not rows, so that a slice of whole groups is
        a packed batch too.
    """
    cells = tf.shape(genes)[0]
    lengths = tf.reduce_sum(tf.cast(wanted, tf.int32), 1)
    loads = tf.reduce_sum(tf.reshape(lengths, [-1, group]), 1)
    times = tf.maximum(1, -(-tf.reduce_max(loads) // (group * width)))
    # Powers of two, since every further shape is compiled anew.
    doublings = tf.math.ceil(tf.math.log(tf.cast(times, tf.float64)) / math.log(2.0) - 1e-9)
    row = width * 2 ** tf.cast(doublings, tf.int32)
    # The values in order, each group's first one at the start of the group's places.
    first = tf.range(tf.shape(loads)[0]) * (group * row) - tf.cumsum(loads, exclusive=True)
    place = tf.range(tf.reduce_sum(loads)) + tf.repeat(first, loads)

    def fill(x: tf.Tensor) -> tf.Tensor:
        flat = tf.scatter_nd(place[:, tf.newaxis], tf.boolean_mask(x, wanted), [cells * row])
        return tf.reshape(flat, [cells, row])

    own = tf.range(cells)[:, tf.newaxis] % group
    cell = fill(tf.broadcast_to(own, tf.shape(genes)))
    # A place in row r of its group that holds a value of the group's row c is c - r rows off.
    # Free places hold gene 0, value 0 and count as a zero of the first cell.
    return fill(genes), fill(values), cell - own
