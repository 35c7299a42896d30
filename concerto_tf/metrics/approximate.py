"""Approximate nearest neighbours among many cells, with a recall that was measured."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

_log = logging.getLogger("concerto_tf")
#: Share of the true neighbours that has to be found on the cells it is measured on. What is
#: promised is 0.98; the rest is room for the error of measuring.
_RECALL = 0.99
_MEASURED_CELLS = 256
_CELLS_PER_CENTROID, _ROUNDS = 40, 8
#: Dimensions that share a code of 4 bits: 2 keep the ranks well enough for a second look at
#: `_WIDE` times as many cells as are asked for. Share of the variance that the axes hold which
#: have codes: the rest is less than what codes round off.
_DIMENSIONS, _WIDE, _HELD = 2, 8, 0.99
#: By how much more lists are searched than the time before: twice as many cost too much at the end.
#: Where that brings less than `_LITTLE` of what is missing, more cells get the second look.
_STEP, _LITTLE, _HALVINGS = 1.4, 0.1, 3
#: Squared distances closer than this share of a squared length are the same.
_SAME = 2e-6
#: Cells that are added at once, and numbers looked at again at once.
_ADDED, _NUMBERS = 100_000, 2**22


class ApproximateSearch:
    """faiss's inverted lists of short codes, and a second look at the cells themselves.

    Cells are compared by codes of 4 bits for two dimensions, in the nearest lists only; the best
    are ranked anew by the cells as they are, which may stay on disk. Where cells differ along half
    of as many axes as there are dimensions, or fewer, codes are of these axes, one each. How many
    lists and cells that takes depends on the cells, so each search finds it by comparing with the
    exact neighbours of a sample of its query: as many as a recall of 0.99 takes. One seed gives the
    same index on the same number of threads.

    Args:
        cells: Embeddings [N, d], float32, in memory or memory-mapped; at least 16.
        cosine: Rank by inner product instead of Euclidean distance; for cells of unit length.
        seed: Of the cells that lists and codes are learned on.
        built: What `saved` gave for the same cells; without it the index is built.

    Attributes:
        recall: Share of the exact neighbours that the last search found of its sample.

    Example:
        >>> import numpy as np
        >>> from concerto_tf.metrics.approximate import ApproximateSearch
        >>> z = np.random.default_rng(0).normal(size=(1000, 8)).astype("float32")
        >>> index, distance = ApproximateSearch(z).search(z[:300], k=2)
        >>> index[:3, 0].tolist(), distance[:3, 0].tolist()
        ([0, 1, 2], [0.0, 0.0, 0.0])

    Reference:
        Johnson, Douze and Jégou, "Billion-scale similarity search with GPUs", IEEE Transactions on
        Big Data 7:535 (2021); André, Kermarrec and Le Scouarnec, "Quicker ADC", IEEE TPAMI 43:1666
        (2021).
    """

    def __init__(
        self,
        cells: np.ndarray,
        cosine: bool = False,
        seed: int = 0,
        built: np.ndarray | None = None,
    ) -> None:
        import faiss

        self._cells, self._cosine, self.recall = cells, cosine, 0.0
        self._index: Any
        self._lists: Any
        n, d = cells.shape
        if built is not None:
            self._index = faiss.deserialize_index(built)
            if self._index.ntotal != n or not 0 <= self._index.d - d < 2 * _DIMENSIONS:
                raise ValueError("the index is of other cells")
            self._lists = faiss.extract_index_ivf(self._index)
            return
        lists = max(1, min(int(2 * math.sqrt(n)), n // 4))
        few = max(_CELLS_PER_CENTROID * lists, 4096)
        chosen = cells[np.sort(np.random.default_rng(seed).permutation(n)[:few])]
        axes = _axes(chosen)
        # An even number of codes, as the search by them takes two at once.
        width = d + -d % (2 * _DIMENSIONS) if axes is None else len(axes)
        codes = width // _DIMENSIONS if axes is None else width
        self._lists = faiss.index_factory(width, f"IVF{lists},PQ{codes}x4fs", faiss.METRIC_L2)
        # Codes of what is left from a list's middle would take a table of distances for each list.
        self._lists.by_residual = False
        for learned in (self._lists.cp, self._lists.pq.cp):
            learned.niter, learned.min_points_per_centroid = _ROUNDS, 1
            learned.seed = seed % 2**31
            learned.max_points_per_centroid = 256  # all that were drawn for the lists
        self._index = self._lists
        if axes is not None:
            turned = faiss.LinearTransform(d, width)
            faiss.copy_array_to_vector(axes.ravel(), turned.A)
            turned.is_trained = True
            self._index = faiss.IndexPreTransform(turned, self._lists)
        self._index.train(self._padded(chosen))
        for start in range(0, n, _ADDED):
            self._index.add(self._padded(cells[start : start + _ADDED]))

    def saved(self) -> np.ndarray:
        """The index as bytes [...], uint8; half a byte per code, 8 bytes per cell and the lists."""
        import faiss

        return faiss.serialize_index(self._index)

    def search(self, z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest cells of each cell, nearly all of them truly so.

        Args:
            z: Embeddings [n, d], float32; of unit length where the cosine is asked for. Of 256 or
                fewer, and of very many neighbours, the answer is exact.
            k: Number of neighbours, at most N.

        Returns:
            Indices int32 [n, k] and Euclidean distances float32 [n, k], the nearest first; instead
            of distances inner products, if `cosine`.
        """
        if len(z) <= _MEASURED_CELLS or _WIDE * k >= len(self._cells):
            return self._shown(*self._exact(z, k))
        wide = self._choose(z, k)
        index, near = self._nearest(z, k, wide)
        short = np.flatnonzero((index < 0).any(axis=1))  # the lists held fewer than k cells
        if len(short):
            index[short], near[short] = self._exact(z[short], k)
        return self._shown(index, near)

    def _shown(self, index: np.ndarray, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return index.astype(np.int32), near if self._cosine else np.sqrt(np.maximum(-near, 0))

    def _padded(self, z: np.ndarray) -> np.ndarray:
        return np.pad(np.asarray(z, np.float32), [[0, 0], [0, self._index.d - z.shape[1]]])

    def _choose(self, z: np.ndarray, k: int) -> int:
        """Sets how many lists are searched; returns how many cells are looked at again."""
        n = len(self._cells)
        sample = z[:: max(1, len(z) // _MEASURED_CELLS)][:_MEASURED_CELLS]
        # By their nearness: of cells that are just alike it does not matter which are found.
        same = _SAME * float(np.mean(np.einsum("nd,nd->n", sample, sample)))
        least = self._exact(sample, k)[1][:, -1:] - same
        lists, wide, before, fewer = 8, min(n, _WIDE * k), 0.0, 1

        def found(lists: int) -> float:
            self._lists.nprobe = min(lists, self._lists.nlist)
            return float(np.mean(self._nearest(sample, k, wide)[1] >= least))

        while True:
            self.recall = found(lists)
            every = lists >= self._lists.nlist
            if self.recall >= _RECALL or (every and wide >= n):
                break
            if every or self.recall - before < _LITTLE * (1 - before):
                wide = min(n, 2 * wide)
            fewer, lists, before = lists, math.ceil(_STEP * lists), self.recall
        for _ in range(_HALVINGS):  # the last step may have been longer than it takes
            between = (fewer + lists) // 2
            recall = found(between)
            if recall >= _RECALL:
                lists, self.recall = between, recall
            else:
                fewer = between
        found(lists)
        _log.info(
            "%d cells: approximate search in %d of %d lists and among the %d best cells, which "
            "finds %.1f%% of the true neighbours",
            n,
            self._lists.nprobe,
            self._lists.nlist,
            wide,
            100 * self.recall,
        )
        return wide

    def _nearest(self, z: np.ndarray, k: int, wide: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest of the `wide` cells with the best codes; -1 where there are too few."""
        index, near = np.empty((len(z), k), np.int64), np.empty((len(z), k), np.float32)
        for rows in self._parts(len(z), wide):
            own = np.asarray(z[rows], np.float32)
            found = np.sort(self._index.search(self._padded(own), wide)[1], axis=1)
            value = self._nearness(self._cells[found], own[:, np.newaxis])
            value[found < 0] = -np.inf
            best = np.argsort(-value, axis=1, kind="stable")[:, :k]
            index[rows] = np.take_along_axis(found, best, 1)
            near[rows] = np.take_along_axis(value, best, 1)
        return index, near

    def _parts(self, n: int, wide: int) -> Iterator[slice]:
        """Rows of a query that are looked at together, each with `wide` cells."""
        step = max(1, _NUMBERS // (wide * self._cells.shape[1]))
        yield from (slice(start, start + step) for start in range(0, n, step))

    def _nearness(self, cells: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Inner products, or squared distances below 0, along the last axis."""
        if self._cosine:
            return np.matmul(cells, z.swapaxes(-1, -2))[..., 0]
        apart = cells - z
        return -np.einsum("...d,...d->...", apart, apart)

    def _exact(self, z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest cells by comparing with all: indices int64 [n, k] and nearness [n, k]."""
        import faiss

        z = np.ascontiguousarray(z, np.float32)
        metric = faiss.METRIC_INNER_PRODUCT if self._cosine else faiss.METRIC_L2
        index = faiss.knn(z, self._cells, k, metric=metric)[1]
        near = np.empty(index.shape, np.float32)
        for rows in self._parts(len(z), k):
            near[rows] = self._nearness(self._cells[index[rows]], z[rows, np.newaxis])
        order = np.argsort(-near, axis=1, kind="stable")
        return np.take_along_axis(index, order, 1), np.take_along_axis(near, order, 1)


def _axes(cells: np.ndarray) -> np.ndarray | None:
    """The principal axes along which cells [n, d] differ, float32 [w, d]; None for too many."""
    d = cells.shape[1]
    x = cells - cells.mean(axis=0)
    variance, axes = np.linalg.eigh((x.T @ x).astype(np.float64))
    held = np.cumsum(variance[::-1]) / max(variance.sum(), 1e-12)
    width = int(np.searchsorted(held, _HELD)) + 1
    width += width % 2
    return None if width > d // 2 else axes[:, ::-1][:, :width].T.astype(np.float32)
