"""Rewrites a matrix that lies gene by gene (CSC, mtx) so that it can be read cell by cell.

One pass over the entries deals them into files of consecutive cells, each small enough for memory:
time is linear in the number of entries and memory does not depend on it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from concerto_tf._files import sha256, write_json
from concerto_tf._identity import json_checksum
from concerto_tf.errors import InputError
from concerto_tf.records.inputs.rows import check_indptr, check_numeric, native

_log = logging.getLogger("concerto_tf")
# Entries in a file, on average, and in a slab read at once: about 100 and 50 MB.
_ENTRIES_PER_FILE = 8_000_000
ENTRIES_PER_SLAB = 2_000_000

Entries = Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]


def is_whole(folder: Path) -> bool:
    """Whether what `sort_by_cell` wrote is there as it was written."""
    try:
        about = json.loads((folder / "rows.json").read_bytes())
        checksum = about.pop("checksum")
        return checksum == json_checksum(about) and all(
            sha256(folder / name) == found for name, found in about["files"].items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


class SortedRows:
    """Rows of a matrix that `sort_by_cell` wrote. The file read last is kept in memory.

    Args:
        folder: where it was written.
    """

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "rows.json").read_text())
        self.shape = (int(about["shape"][0]), int(about["shape"][1]))
        self._folder = folder
        self._cells_per_file = int(about["cells_per_file"])
        self._dtype = _entry_dtype(np.dtype(about["dtype"]))
        self._held: tuple[int, sp.csr_matrix] | None = None

    def read(self, start: int, stop: int) -> sp.csr_matrix:
        size = self._cells_per_file
        blocks = [
            self._file(number)[max(start - number * size, 0) : stop - number * size]
            for number in range(start // size, -(-stop // size))
        ]
        if not blocks:
            return sp.csr_matrix((0, self.shape[1]), dtype=self._dtype["value"])
        return sp.vstack(blocks, format="csr")

    def _file(self, number: int) -> sp.csr_matrix:
        held = self._held  # another thread may change it
        if held is None or held[0] != number:
            first = number * self._cells_per_file
            n_cells = min(self._cells_per_file, self.shape[0] - first)
            path = self._folder / str(number)
            entries = np.fromfile(path, self._dtype) if path.exists() else np.empty(0, self._dtype)
            matrix = sp.coo_matrix(
                (native(entries["value"]), (entries["cell"] - first, entries["gene"])),
                shape=(n_cells, self.shape[1]),
            )
            self._held = held = (number, matrix.tocsr())
        return held[1]


def sort_by_cell(
    entries: Entries,
    shape: tuple[int, int],
    n_entries: int,
    dtype: np.dtype,
    folder: Path,
    entries_per_file: int = _ENTRIES_PER_FILE,
) -> SortedRows:
    """Deals entries in any order into files of consecutive cells.

    Args:
        entries: slabs of (cell, gene, value) arrays, each [n].
        shape: cells, genes.
        n_entries: how many entries there are in all, to choose the number of files.
        dtype: of the values.
        folder: to leave the files in; it appears when they are complete.
        entries_per_file: entries in a file on average.

    Returns:
        The rows.

    Raises:
        InputError: an entry lies outside the shape, or their number is not `n_entries`.
    """
    n_files = max(1, -(-n_entries // entries_per_file))
    cells_per_file = max(1, -(-shape[0] // n_files))
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        seen = 0
        for cells, genes, values in entries:
            seen += len(cells)
            _check_inside(cells, shape[0], "cell")
            _check_inside(genes, shape[1], "gene")
            _deal(cells, genes, values, cells_per_file, _entry_dtype(dtype), unfinished)
        if seen != n_entries:
            raise InputError(
                f"{seen} entries where {n_entries} are announced; the file is truncated"
            )
        about = {"shape": shape, "cells_per_file": cells_per_file, "dtype": np.dtype(dtype).str}
        files = {}
        for path in sorted(unfinished.iterdir()):
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
                files[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        about["files"] = files
        write_json(unfinished / "rows.json", {**about, "checksum": json_checksum(about)})
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return SortedRows(folder)


def column_entries(
    data: Any, indices: Any, indptr: Any, n_genes: int, slab: int = ENTRIES_PER_SLAB
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The entries of a CSC matrix (cells x genes, by gene), in slabs.

    Args:
        data: values, [nnz]; NumPy, h5py or zarr.
        indices: cell of each value, [nnz].
        indptr: where each gene begins, [n_genes + 1].
        n_genes: number of genes.
        slab: entries at once.

    Yields:
        cell, gene, value, each [at most `slab`].
    """
    check_numeric(data.dtype)
    starts = check_indptr(indptr, n_genes, data, indices)
    for begin in range(0, int(starts[-1]), slab):
        end = min(begin + slab, int(starts[-1]))
        inside = np.diff(np.clip(starts, begin, end))
        genes = np.repeat(np.arange(n_genes), inside)
        yield np.asarray(indices[begin:end]), genes, np.asarray(data[begin:end])


def _deal(
    cells: np.ndarray,
    genes: np.ndarray,
    values: np.ndarray,
    cells_per_file: int,
    dtype: np.dtype,
    folder: Path,
) -> None:
    if not len(cells):
        return
    table = np.empty(len(cells), dtype)
    table["cell"], table["gene"], table["value"] = cells, genes, values
    files = np.asarray(cells) // cells_per_file
    if np.any(files[1:] < files[:-1]):
        order = np.argsort(files, kind="stable")
        table, files = table[order], files[order]
    numbers, begins = np.unique(files, return_index=True)
    for number, begin, end in zip(numbers, begins, [*begins[1:], len(files)], strict=True):
        with open(folder / str(number), "ab") as file:
            table[begin:end].tofile(file)


def _entry_dtype(dtype: np.dtype) -> np.dtype:
    return np.dtype([("cell", "<i4"), ("gene", "<i4"), ("value", dtype)])


def _check_inside(positions: np.ndarray, size: int, what: str) -> None:
    if len(positions) and not 0 <= positions.min() <= positions.max() < size:
        wrong = positions.max() if positions.max() >= size else positions.min()
        raise InputError(f"an entry names {what} {wrong + 1} of {size}; the file is damaged")


class Scratch:
    """A folder for copies of column-ordered matrices, sorted by cell.

    Args:
        folder: where; None for a temporary folder, made when first needed.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self._folder = Path(folder).absolute() if folder is not None else None
        self._remove: Any = None

    @property
    def folder(self) -> Path | None:
        """The folder, or None if it was temporary and not needed."""
        return self._folder

    def sorted_rows(
        self,
        path: Path,
        where: str,
        shape: tuple[int, int],
        n_entries: int,
        dtype: Any,
        entries: Entries,
    ) -> SortedRows:
        """The copy of this matrix sorted by cell, made now unless it is there.

        Args:
            path: of the input.
            where: place of the matrix within it.
            shape: cells, genes.
            n_entries: of the matrix.
            dtype: of its values.
            entries: slabs of (cell, gene, value); not touched if the copy is there.
        """
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="concerto-"))
            self._remove = weakref.finalize(self, shutil.rmtree, self._folder, True)
        stat = path.stat()
        identity = (str(path), stat.st_size, stat.st_mtime_ns, where, shape, n_entries)
        digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
        copy = self._folder / f"by-cell-{digest}"
        if copy.exists():
            if is_whole(copy):
                return SortedRows(copy)
            _log.warning("%s: is damaged and made again", copy)
            shutil.rmtree(copy)
        return sort_by_cell(entries, shape, n_entries, dtype, copy)

    def remove(self) -> None:
        """Removes the folder if it was temporary."""
        if self._remove is not None:
            self._remove()
