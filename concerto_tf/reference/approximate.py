"""Approximate nearest neighbours over large references, with a recall that was measured."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np

_log = logging.getLogger("concerto_tf")
#: Share of the true neighbours that has to be found on the cells it is measured on. What is
#: promised is 0.98; the rest is room for the error of measuring.
_RECALL = 0.99
_MEASURED_CELLS = 500
_CELLS_PER_CENTROID = 64
#: By how much more lists are searched than the time before: twice as many cost too much at the end.
_STEP = 1.4
#: Cosines closer than this are the same.
_SAME = 1e-6


class ApproximateSearch:
    """faiss's inverted lists: cells are compared with those of the nearest lists only.

    How many lists that takes depends on the cells, so each search finds it by comparing with the
    exact neighbours of a sample of its query: as many as a recall of 0.99 takes.

    Args:
        unit: Unit embeddings [N, d] of the reference, float32.

    Attributes:
        recall: Share of the exact neighbours that the last search found of its sample.

    Raises:
        ImportError: faiss is not installed.

    Reference:
        Johnson, Douze and Jégou, "Billion-scale similarity search with GPUs", IEEE Transactions on
        Big Data 7:535 (2021).
    """

    def __init__(self, unit: np.ndarray) -> None:
        import faiss

        self._unit, self.recall = unit, 0.0
        n, d = unit.shape
        self._index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(d), d, int(4 * math.sqrt(n)), faiss.METRIC_INNER_PRODUCT
        )
        self._index.cp.niter = 10
        self._index.cp.max_points_per_centroid = _CELLS_PER_CENTROID
        self._index.train(unit)
        self._index.add(unit)

    def search(self, z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k reference cells most similar to each cell, nearly all of them truly so.

        Args:
            z: Unit embeddings [n, d], float32.
            k: Number of neighbours.

        Returns:
            Indices int32 [n, k] and cosines float32 [n, k], the most similar first.
        """
        self._choose_lists(z, k)
        cosine, index = self._index.search(z, k)
        short = np.flatnonzero((index < 0).any(axis=1))  # the lists held fewer than k cells
        if len(short):
            cosine[short], index[short] = exact(z[short], self._unit, k)
        return index.astype(np.int32), cosine

    def _choose_lists(self, z: np.ndarray, k: int) -> None:
        sample = z[:: max(1, len(z) // _MEASURED_CELLS)][:_MEASURED_CELLS]
        # By their similarity: of cells that are just alike it does not matter which are found.
        least = exact(sample, self._unit, k)[0][:, -1:] - _SAME
        lists = 8
        while True:
            self._index.nprobe = min(lists, self._index.nlist)
            self.recall = float(np.mean(self._index.search(sample, k)[0] >= least))
            if self.recall >= _RECALL or lists >= self._index.nlist:
                break
            lists = math.ceil(_STEP * lists)
        _log.info(
            "%d reference cells: approximate search in %d of %d lists, which finds %.1f%% of the "
            "true neighbours",
            len(self._unit),
            self._index.nprobe,
            self._index.nlist,
            100 * self.recall,
        )


def exact(z: np.ndarray, unit: np.ndarray, k: int) -> tuple[Any, Any]:
    """faiss's exact search: cosines float32 [n, k] and indices int64 [n, k]."""
    import faiss

    return faiss.knn(z, unit, k, metric=faiss.METRIC_INNER_PRODUCT)
