"""Cells of uneven length as a rectangle: how wide it is, and how cells are put in, in NumPy.

In a padded minibatch each cell has a row. In a packed one some cells share theirs, so that cells
with many genes take the room that those with few leave.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.records.batch import Genes

#: Cells that share their places, at most. More would waste less; but a batch is divided between
#: replicas, and no cell may stand on two of them.
_GROUP_CELLS = 64
#: Places per cell, relative to the mean; a group of 64 that needs more is rare.
_ROOM = 1.35
_MULTIPLE = 16
_NONZEROS_MULTIPLE = 32
#: Where cells are so much alike, packing would cost more than it saves.
_WORTH_PACKING = 0.75


def gene_mask(genes: Genes, n_genes: int) -> np.ndarray:
    """Which genes of a vocabulary are chosen, bool [n_genes].

    Args:
        genes: Indices of the chosen ones.
        n_genes: Genes of the vocabulary.

    Raises:
        InputError: An index is of no gene.
    """
    genes = np.asarray(genes, np.int64)
    if genes.size and not 0 <= genes.min() <= genes.max() < n_genes:
        raise InputError(f"gene indices must be from 0 to {n_genes - 1}, the records' vocabulary")
    chosen = np.zeros(n_genes, bool)
    chosen[genes] = True
    return chosen


def group_size(batch_size: int, replicas: int = 1) -> int:
    """Cells that share their places: the largest divisor of a replica's batch up to 64."""
    cells = batch_size // replicas
    return next(n for n in range(min(_GROUP_CELLS, cells), 0, -1) if cells % n == 0)


def packed_width(mean_nonzeros: float, max_nonzeros: int, group: int) -> int:
    """Places per row of a packed batch."""
    if group == 1:
        return max(1, max_nonzeros)
    wanted = math.ceil(_ROOM * mean_nonzeros / _MULTIPLE) * _MULTIPLE
    return max(1, min(max(wanted, _MULTIPLE), max_nonzeros))


def _padded_width(nonzeros: int) -> int:
    """Columns of a padded batch: a round number, as each new shape is compiled anew."""
    return max(1, -(-nonzeros // _NONZEROS_MULTIPLE)) * _NONZEROS_MULTIPLE


@dataclass(frozen=True)
class BatchLayout:
    """How the cells of a minibatch lie.

    Attributes:
        width: Places of a row.
        group: Cells that share their places; 1 where each has a row.
    """

    width: int
    group: int = 1

    @staticmethod
    def of(most: int, mean: float, group: int = 1) -> BatchLayout:
        """The narrowest layout of cells.

        Args:
            most: Nonzeros of a cell, at most.
            mean: Nonzeros of a cell on the mean.
            group: Cells that may share their places.

        Example:
            >>> BatchLayout.of(300, 70.0, 64), BatchLayout.of(90, 70.0, 64)
            (BatchLayout(width=96, group=64), BatchLayout(width=96, group=1))
        """
        padded = BatchLayout(_padded_width(most))
        if group == 1:
            return padded
        packed = BatchLayout(packed_width(mean, padded.width, group), group)
        return packed if packed.width < _WORTH_PACKING * padded.width else padded

    def fill(
        self, genes: np.ndarray, values: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Puts cells into their places; `packing.pack` is the same in TensorFlow.

        Args:
            genes: Gene indices of all cells, one cell after the other [T].
            values: Their values [T].
            lengths: Number of them that each cell has [B], a multiple of the group.

        Returns:
            Genes int32 and values float32 [B, width], and where cells share their places how many
            rows further down the cell of each value stands, int32 [B, width]. Where a group needs
            more room, all rows are two, four, ... times as wide.
        """
        loads = lengths.reshape(-1, self.group).sum(axis=1)
        row = self.width
        while loads.size and loads.max() > self.group * row:
            row *= 2
        shape = (len(loads), self.group * row)
        before = np.cumsum(loads) - loads
        places = np.arange(len(genes)) + np.repeat(np.arange(len(loads)) * shape[1] - before, loads)

        def filled(x: np.ndarray, rest: int, dtype: str) -> np.ndarray:
            dense = np.full(shape, rest, dtype)
            dense.ravel()[places] = x
            return dense.reshape(len(lengths), row)

        dense = filled(genes, 0, "i4"), filled(values, 0, "f4")
        if self.group == 1:
            return *dense, None
        own = np.arange(len(lengths)) % self.group
        # Free places hold gene 0, value 0 and count as a zero of the group's last cell.
        cell = filled(np.repeat(own, lengths), self.group - 1, "i4")
        return *dense, cell - own[:, np.newaxis].astype("i4")
