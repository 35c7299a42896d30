"""Search for the nearest reference cells by cosine similarity."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import tensorflow as tf

from concerto_tf.metrics.approximate import ApproximateSearch

#: Reference cells past which the search is approximate, and query cells up to which it is exact all
#: the same where no index is there: it would take longer to build than it saves.
EXACT_CELLS = 200_000
FEW_CELLS = 2_000
#: Reference cells that are compared at once: their similarities stay in the processor's cache.
_BLOCK_CELLS = 8192
#: Cells of a query that are looked at together.
BATCH_CELLS = 256
#: Columns of which only the maximum is looked at first.
_GROUP = 64
#: Below every cosine.
_NEVER = -2.0


def in_blocks(unit: np.ndarray, block_cells: int = _BLOCK_CELLS) -> np.ndarray:
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
    >>> from concerto_tf.reference.index import in_blocks, nearest
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


class Index:
    """Search for the nearest of reference cells: exact in TensorFlow, of many cells by faiss.

    The search is exact up to 200,000 reference cells, and for 2,000 cells or fewer where the index
    of more would have to be built. Beyond that it finds at least 0.98 of the true neighbours
    (`ApproximateSearch`), and looks at cells that may stay on disk.

    Args:
        unit: Embeddings of the reference at unit length [N, d], float32.
        built: What `built` gave for the same embeddings, if it is there already.
    """

    def __init__(self, unit: np.ndarray, built: np.ndarray | None = None) -> None:
        self._unit = unit
        self._approximate: ApproximateSearch | None = None
        if built is not None:
            self._approximate = ApproximateSearch(unit, cosine=True, built=built)

    @cached_property
    def blocks(self) -> tf.Tensor:
        """The embeddings as `nearest` takes them."""
        return tf.constant(in_blocks(self._unit))

    @property
    def built(self) -> np.ndarray | None:
        """The index as bytes, to be kept beside the embeddings; None where none is needed."""
        return self._built().saved() if len(self._unit) > EXACT_CELLS else None

    def search(self, z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar reference cells of each cell.

        Args:
            z: Embeddings [n, d], float32; their length does not matter.
            k: Number of neighbours, at most N.

        Returns:
            Indices int32 [n, k] and cosines float32 [n, k], the most similar first.
        """
        n_cells = len(self._unit)
        if n_cells > EXACT_CELLS and (self._approximate is not None or len(z) > FEW_CELLS):
            length = np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
            return self._built().search(np.ascontiguousarray(z / length, np.float32), k)
        index = np.empty((len(z), k), np.int32)
        cosine = np.empty((len(z), k), np.float32)
        for start in range(0, len(z), BATCH_CELLS):
            rows = slice(start, start + BATCH_CELLS)
            # No graph, which takes longer to make than most queries do; nor XLA, whose matrix
            # product takes several times as long on CPUs.
            index[rows], cosine[rows] = nearest(z[rows], self.blocks, n_cells, k)
        return index, cosine

    def _built(self) -> ApproximateSearch:
        """The search among many cells."""
        if self._approximate is None:
            self._approximate = ApproximateSearch(self._unit, cosine=True)
        return self._approximate
