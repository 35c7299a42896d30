"""Matrices of cells x genes, in memory or on disk, read by consecutive rows.

Every class here has a `shape` and a `read(start, stop)` that returns those rows as a CSR matrix of
its own memory, touching no more of the source than they need. Entries may come unsorted, repeated
or zero; `Input.chunk` puts that right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from concerto_tf.errors import InputError

# Dense rows are made sparse in blocks of this size.
_BLOCK_BYTES = 64 * 2**20
# Values of a cell that need no explanation; how often, on average, a gene may be repeated in one.
_FREE_VALUES, _MOST_REPEATED = 2**20, 4
# Where a matrix is looked at, and how many rows there.
_SAMPLE_PLACES, _SAMPLE_ROWS = 16, 8
# Rows that are read with those beside them rather than by themselves.
_READ_TOGETHER = 64


class Rows(Protocol):
    """A matrix that can be read by consecutive rows."""

    shape: tuple[int, int]

    def read(self, start: int, stop: int) -> sp.csr_matrix:
        """The rows start to stop."""


class CompressedRows:
    """Rows of a CSR matrix whose arrays are NumPy, h5py or zarr arrays.

    A 10x `.h5`, which is genes x cells by column, is the same thing.

    Args:
        data: values, [nnz].
        indices: gene index of each value, [nnz].
        indptr: where each cell begins, [n_cells + 1]; read into memory.
        shape: cells, genes.

    Raises:
        InputError: the three arrays do not fit together.

    Example:
        >>> import numpy as np
        >>> rows = CompressedRows(np.array([5, 7]), np.array([1, 0]), np.array([0, 1, 2]), (2, 2))
        >>> rows.read(1, 2).toarray()
        array([[7, 0]])
    """

    def __init__(self, data: Any, indices: Any, indptr: Any, shape: Sequence[int]) -> None:
        self.shape = (int(shape[0]), int(shape[1]))
        self._data = data
        self._indices = indices
        self._indptr = check_indptr(indptr, self.shape[0], data, indices)
        check_numeric(data.dtype)
        # A cell that says it has more would take memory without end.
        longest = int(np.diff(self._indptr).max(initial=0))
        if longest > max(_FREE_VALUES, _MOST_REPEATED * self.shape[1]):
            raise InputError(f"a cell of {longest} values of {self.shape[1]} genes")

    def read(self, start: int, stop: int) -> sp.csr_matrix:
        begin, end = int(self._indptr[start]), int(self._indptr[stop])
        indices, data = self._indices[begin:end], native(self._data[begin:end])
        if isinstance(self._data, np.ndarray):
            # A slice of what the user holds; those of a file are ours already.
            indices, data = indices.copy(), data.copy()
        if indices.size and not 0 <= indices.min() <= indices.max() < self.shape[1]:
            raise InputError(
                f"a gene index lies outside the {self.shape[1]} genes; the file is damaged"
            )
        indices = indices.astype(np.int32, copy=False)
        indptr = (self._indptr[start : stop + 1] - begin).astype(np.int32)
        return sp.csr_matrix((data, indices, indptr), shape=(stop - start, self.shape[1]))


class DenseRows:
    """Rows of a dense matrix (NumPy, h5py or zarr array), or of a dask array of any blocks.

    Args:
        array: [cells, genes].
    """

    def __init__(self, array: Any) -> None:
        if len(array.shape) != 2:
            raise InputError(
                f"an array of {len(array.shape)} dimensions where cells x genes is due"
            )
        self.shape = (int(array.shape[0]), int(array.shape[1]))
        self._array = array
        check_numeric(array.dtype)

    def read(self, start: int, stop: int) -> sp.csr_matrix:
        row_bytes = max(1, self.shape[1] * self._array.dtype.itemsize)
        step = max(1, _BLOCK_BYTES // row_bytes)
        blocks = [
            _as_csr(self._array[begin : min(begin + step, stop)])
            for begin in range(start, stop, step)
        ]
        return sp.vstack(blocks, format="csr") if blocks else _as_csr(self._array[start:stop])


class FrameRows:
    """Rows of a data frame stored by column, such as antibody counts in obsm.

    Args:
        columns: one array (or group of `values` and `mask`) per feature, each [cells].
        n_cells: number of cells, for a frame without columns.
    """

    def __init__(self, columns: Sequence[Any], n_cells: int) -> None:
        self.shape = (n_cells, len(columns))
        # Nullable integers and truth values are stored as a group.
        self._columns = [
            (c["values"], c["mask"]) if hasattr(c, "keys") else (c, None) for c in columns
        ]
        for values, _ in self._columns:
            check_numeric(values.dtype)

    def read(self, start: int, stop: int) -> sp.csr_matrix:
        block = np.empty((stop - start, self.shape[1]), dtype=np.float64)
        for position, (values, mask) in enumerate(self._columns):
            block[:, position] = values[start:stop]
            if mask is not None:
                block[np.asarray(mask[start:stop], dtype=bool), position] = np.nan
        return _as_csr(block)


@dataclass
class ViewRows:
    """Rows of an element of an AnnData that is a view or backed, which is sliced cell by cell.

    Args:
        adata: the annotated data.
        element: "X", "raw", "layers" or "obsm".
        key: name within layers or obsm.
        shape: cells, genes.
    """

    adata: Any
    element: str
    key: str | None
    shape: tuple[int, int]

    def read(self, start: int, stop: int) -> sp.csr_matrix:
        part = self.adata[start:stop]
        if self.element == "X":
            return _as_csr(part.X)
        if self.element == "raw":
            return _as_csr(part.raw.X)
        return _as_csr(getattr(part, self.element)[self.key])


class PlacedRows:
    """Rows of a matrix in another order; a row that it lacks is empty.

    Args:
        rows: the matrix.
        order: which of its rows each is, int64 [cells]; -1 for none.

    Example:
        >>> rows = PlacedRows(DenseRows(np.array([[1, 2], [3, 4]])), np.array([1, -1, 0]))
        >>> rows.read(0, 3).toarray().tolist()
        [[3, 4], [0, 0], [1, 2]]
    """

    def __init__(self, rows: Rows, order: np.ndarray) -> None:
        self.shape = (len(order), rows.shape[1])
        self._rows, self._order = rows, order

    def read(self, start: int, stop: int) -> sp.csr_matrix:
        order = self._order[start:stop]
        wanted = np.unique(order[order >= 0])
        # Rows that lie near each other are read at once.
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > _READ_TOGETHER) + 1)
        blocks = [
            self._rows.read(int(run[0]), int(run[-1]) + 1)[run - run[0]] for run in runs if len(run)
        ]
        nothing = sp.csr_matrix((1, self.shape[1]), dtype=blocks[0].dtype if blocks else np.uint8)
        place = np.where(order < 0, len(wanted), np.searchsorted(wanted, order))
        return sp.vstack([*blocks, nothing], format="csr")[place]


def sample_rows(rows: Rows) -> np.ndarray:
    """Some values of a matrix, from rows all over it."""

    def read(part: slice) -> np.ndarray:
        return rows.read(part.start, part.stop).data

    return spread(rows.shape[0], _SAMPLE_ROWS, read)


def spread(length: int, size: int, read: Callable[[slice], Any]) -> np.ndarray:
    """What is read in up to 16 places all over something.

    Args:
        length: of it.
        size: of what is read in a place.
        read: reads a slice.

    Example:
        >>> spread(100, 2, np.arange(100).__getitem__)[:6].tolist()
        [0, 1, 6, 7, 13, 14]
    """
    starts = np.unique(np.linspace(0, max(0, length - size), _SAMPLE_PLACES).astype(int))
    parts = [slice(int(start), min(int(start) + size, length)) for start in starts]
    return np.concatenate([np.asarray(read(part)) for part in parts])


def _as_csr(block: Any) -> sp.csr_matrix:
    """A CSR matrix, in memory of its own, of anything with rows and columns, lazy or not."""
    if hasattr(block, "compute"):
        block = block.compute()
    if sp.issparse(block):
        check_numeric(block.dtype)
        block = sp.csr_matrix(block, copy=True)
        block.data = native(block.data)
        return block
    if hasattr(block, "to_numpy"):
        # Columns of a data frame may be nullable; a gap becomes NaN and is reported as such.
        kinds = {np.dtype(getattr(kind, "numpy_dtype", kind)).kind for kind in block.dtypes}
        block = block.to_numpy(dtype=np.float64, na_value=np.nan) if kinds <= set("biuf") else block
    block = native(np.asarray(block))
    check_numeric(block.dtype)
    # Several times as quick as SciPy, which looks for the nonzeros in two dimensions.
    nonzero = block != 0
    places = np.flatnonzero(nonzero)
    indices = (places % max(1, block.shape[1])).astype(np.int32)
    indptr = np.concatenate([[0], np.cumsum(nonzero.sum(axis=1))]).astype(np.int32)
    return sp.csr_matrix((block.ravel()[places], indices, indptr), shape=block.shape)


def native(array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order, which SciPy and pandas ask for.

    Example:
        >>> native(np.array([1], ">i2")).dtype.isnative
        True
    """
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def check_numeric(dtype: Any) -> None:
    """Raises InputError for anything but truth values, integers and floats."""
    if getattr(dtype, "kind", "O") not in "biuf":
        raise InputError(f"values of type {dtype} where numbers are due")


def check_indptr(indptr: Any, n_major: int, data: Any, indices: Any) -> np.ndarray:
    """The offsets as int64, or InputError where a compressed matrix does not hang together."""
    fits = tuple(indptr.shape) == (n_major + 1,)  # looked at before anything is read
    indptr = np.asarray(indptr[:]) if fits else np.ones(1)
    if (
        not fits
        or indptr[0] != 0
        or np.any(np.diff(indptr) < 0)
        or not indptr[-1] == data.shape[0] == indices.shape[0]
    ):
        raise InputError("data, indices and indptr do not fit together; the file is damaged")
    return indptr.astype(np.int64)
