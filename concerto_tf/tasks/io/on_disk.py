"""Embeddings on disk, for more cells than memory should hold."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_BLOCK_ROWS = 8_192


class RowsOnDisk:
    """Rows of one width in a temporary file; memory does not grow with them.

    Args:
        width: Numbers of a row.
        folder: Where to make the file; by default where temporary files go.

    Example:
        >>> rows = RowsOnDisk(2)
        >>> rows.put(np.array([5, 1]), np.array([[5, 5], [1, 1]], np.float32))
        >>> rows.array.tolist()
        [[1.0, 1.0], [5.0, 5.0]]
    """

    def __init__(self, width: int, folder: Path | None = None) -> None:
        self.width = width
        self._file = tempfile.TemporaryFile(prefix=".tmp-", dir=folder)
        weakref.finalize(self, self._file.close)
        self._rows: list[np.ndarray] = []

    def put(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Adds rows.

        Args:
            rows: Where each belongs, int64 [n]; each number once, in any order, with gaps.
            values: The rows [n, width]; kept as float32.
        """
        self._rows.append(rows)
        self._file.write(np.ascontiguousarray(values, np.float32).tobytes())

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in ascending order, some thousand at a time, each float32 [m, width]."""
        size = 4 * self.width
        order = np.argsort(np.concatenate([np.zeros(0, np.int64), *self._rows]))
        for start in range(0, len(order), _BLOCK_ROWS):
            read = []
            for place in order[start : start + _BLOCK_ROWS].tolist():
                self._file.seek(place * size)
                read.append(self._file.read(size))
            yield np.frombuffer(b"".join(read), np.float32).reshape(-1, self.width)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and their width."""
        return sum(map(len, self._rows)), self.width

    @property
    def array(self) -> np.ndarray:
        """All rows in ascending order, in memory, float32 [n, width]."""
        return np.concatenate([np.zeros((0, self.width), np.float32), *self.blocks()])
