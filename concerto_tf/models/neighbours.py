"""Nearest reference cells by cosine similarity, and their vote; pure functions of tensors."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

#: Reference cells that are compared at once: their similarities stay in the processor's cache.
BLOCK_CELLS = 8192
#: Columns of which only the maximum is looked at first.
_GROUP = 64
#: Below every cosine.
_NEVER = -2.0


def in_blocks(unit: np.ndarray, block_cells: int = BLOCK_CELLS) -> np.ndarray:
    """Embeddings as `nearest` takes them: in blocks of one size, filled up with zeros.

    Args:
        unit: Unit embeddings [N, d], float32.
        block_cells: Largest size of a block.

    Returns:
        Array [blocks, size, d], float32; the size is a multiple of 64.
    """
    n, d = unit.shape
    size = min(block_cells, -(-n // _GROUP) * _GROUP)
    blocks = np.zeros((-(-n // size), size, d), np.float32)
    blocks.reshape(-1, d)[:n] = unit
    return blocks


def nearest(z: tf.Tensor, blocks: tf.Tensor, n_cells: int, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The k reference cells most similar to each cell, exactly.

    Memory is bounded by batch times block. Within a block the maxima of groups of columns decide
    which groups can hold one of the k best: the k best lie in the k groups of greatest maxima.
    That is several times faster than `tf.math.top_k` over all columns.

    Args:
        z: Embeddings [B, d], float; their length does not matter.
        blocks: Reference as `in_blocks` gives it, [blocks, size, d].
        n_cells: Number of reference cells N.
        k: Number of neighbours, at most N.

    Returns:
        Indices int32 [B, k] and cosines float32 [B, k], the most similar first.

    Example:

    >>> import numpy as np, tensorflow as tf
    >>> from concerto_tf.models.neighbours import in_blocks, nearest
    >>> reference = np.eye(3, dtype="float32")
    >>> index, cosine = nearest(tf.constant([[3.0, 4.0, 0.0]]), in_blocks(reference), 3, k=2)
    >>> index.numpy().tolist(), cosine.numpy().astype(float).round(3).tolist()
    ([[1, 0]], [[0.8, 0.6]])

    Reference:
        Concerto, equation 14.
    """
    z = tf.math.l2_normalize(tf.cast(z, tf.float32), axis=-1)
    blocks = tf.convert_to_tensor(blocks)
    n_blocks, size = blocks.shape[0], blocks.shape[1]
    b = tf.shape(z)[0]
    n_groups = size // _GROUP
    groups = min(k, n_groups)
    of_block = min(k, size)
    real = tf.range((n_blocks - 1) * size, n_blocks * size) < n_cells

    def step(i: tf.Tensor, best: tf.Tensor, where: tf.Tensor) -> tuple[tf.Tensor, ...]:
        cosine = tf.matmul(z, blocks[i], transpose_b=True)
        # Only the last block is filled up; a pass over all the others would cost a quarter more.
        cosine = tf.cond(i < n_blocks - 1, lambda: cosine, lambda: tf.where(real, cosine, _NEVER))
        cosine = tf.reshape(cosine, [b, n_groups, _GROUP])
        _, group = tf.math.top_k(tf.reduce_max(cosine, axis=-1), groups)
        inside = tf.reshape(tf.gather(cosine, group, batch_dims=1), [b, groups * _GROUP])
        found, at = tf.math.top_k(inside, of_block)
        place = tf.gather(group, at // _GROUP, batch_dims=1) * _GROUP + at % _GROUP
        best, order = tf.math.top_k(tf.concat([best, found], axis=1), k)
        where = tf.gather(tf.concat([where, i * size + place], axis=1), order, batch_dims=1)
        return i + 1, best, where

    start = (tf.constant(0), tf.fill([b, k], _NEVER), tf.zeros([b, k], tf.int32))
    pair = tf.TensorShape([z.shape[0], k])
    _, cosine, index = tf.while_loop(
        lambda i, *_: i < n_blocks,
        step,
        start,
        maximum_iterations=n_blocks,
        shape_invariants=(tf.TensorShape([]), pair, pair),
    )
    return index, cosine


def vote(codes: tf.Tensor, cosine: tf.Tensor, n_labels: int) -> tf.Tensor:
    """Probability of each label from the labels of the nearest reference cells.

    A neighbour weighs as much as its cosine; one that points away (a negative cosine), and one
    without a label, does not vote. Where nobody votes, all probabilities are 0.

    Args:
        codes: Labels of the neighbours [B, k], int; -1 where missing.
        cosine: Their cosine similarities [B, k].
        n_labels: Number of labels L.

    Returns:
        Probabilities [B, L], float32.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.models.neighbours import vote
    >>> vote(tf.constant([[0, 1, 0]]), tf.constant([[0.6, 0.3, 0.3]]), 2).numpy().tolist()
    [[0.75, 0.25]]

    Reference:
        Concerto, equations 15 and 16.
    """
    weight = tf.where(codes >= 0, tf.maximum(tf.cast(cosine, tf.float32), 0.0), 0.0)
    member = tf.one_hot(codes, n_labels, dtype=tf.float32)
    return tf.math.divide_no_nan(
        tf.einsum("bk,bkl->bl", weight, member), tf.reduce_sum(weight, axis=1, keepdims=True)
    )
