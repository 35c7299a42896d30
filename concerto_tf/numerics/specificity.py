"""How specific genes are to groups of cells, from sums alone."""

from __future__ import annotations

import numpy as np

# Quantile of the genes' standard deviations that is added to them, see `GroupSums.specificity`.
_FLOOR = 0.05


class GroupSums:
    """Sums of a quantity of genes over the cells of each group, for any number of cells.

    Args:
        n_groups: Number of groups.
        n_genes: Number of genes.
    """

    def __init__(self, n_groups: int, n_genes: int) -> None:
        self.cells = np.zeros(n_groups, np.int64)
        self._sum, self._square = np.zeros((2, n_groups, n_genes))

    def add(self, group: np.ndarray, cell: np.ndarray, gene: np.ndarray, x: np.ndarray) -> None:
        """Adds cells; values that are not given are 0.

        Args:
            group: Group of each cell [B]; -1 leaves a cell out.
            cell: The cell of each value [n].
            gene: The gene of each value [n].
            x: The values [n].
        """
        self.cells += np.bincount(group[group >= 0], minlength=len(self.cells))
        own = group[cell] >= 0
        at, x = (group[cell[own]], gene[own]), x[own].astype(np.float64)
        np.add.at(self._sum, at, x)
        np.add.at(self._square, at, np.square(x))

    def mean(self) -> np.ndarray:
        """Means over the cells of each group [groups, genes]."""
        return _moments(self.cells, self._sum, self._square)[0]

    def specificity(self) -> np.ndarray:
        """How far the values in each group lie above those in all other cells [groups, genes].

        Difference of the means over the sum of the standard deviations, which is the same
        whatever factor a gene's values have. Added to the sum is what only the rarest genes stay
        below, so that a count in a single cell does not make a signature. Without other cells the
        mean itself stands for the difference.
        """
        mean, deviation = _moments(self.cells, self._sum, self._square)
        others, around = _moments(
            self.cells.sum() - self.cells,
            self._sum.sum(0) - self._sum,
            self._square.sum(0) - self._square,
        )
        spread = deviation + around
        varying = spread[self.cells > 0]
        varying = varying[varying > 0]
        floor = np.quantile(varying, _FLOOR) if varying.size else 1.0
        return (mean - others) / (spread + floor)


def _moments(n: np.ndarray, total: np.ndarray, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations [groups, genes] from sums; 0 for no cells."""
    n = np.maximum(n, 1)[:, np.newaxis]
    mean = total / n
    return mean, np.sqrt(np.maximum(square / n - np.square(mean), 0))
