"""The streaming view of one input, whatever format it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from concerto_tf.errors import InputError, choices, first_line
from concerto_tf.records.batch import RNA
from concerto_tf.records.genes.vocabulary import Vocabulary
from concerto_tf.records.inputs.observations import (
    Observations,
    barcode_repeated,
    codes_and_names,
)
from concerto_tf.records.inputs.rows import Rows

# Files and folders whose own name says nothing about the sample.
_NAMELESS = (
    "filtered_feature_bc_matrix raw_feature_bc_matrix sample_filtered_feature_bc_matrix "
    "sample_raw_feature_bc_matrix filtered_gene_bc_matrices raw_gene_bc_matrices "
    "filtered_gene_bc_matrices_h5 raw_gene_bc_matrices_h5 outs count matrix"
).split()
_SUFFIXES = (".gz", ".h5ad", ".h5mu", ".zarr", ".h5", ".mtx")


@dataclass(frozen=True)
class InputPart:
    """One modality of an input.

    Args:
        vocabulary: its genes.
        rows: the matrix whose columns they are.
        where: place within the input, for messages ("X", "layers/counts").
        columns: which columns of the matrix they are, int64 ascending; None for all.
    """

    vocabulary: Vocabulary
    rows: Rows
    where: str
    columns: np.ndarray | None = None


class Input:
    """The cells of one file or AnnData, read in chunks; made by `open_input`.

    Memory is bounded by the chunk asked for. Pickling an Input that came from a path sends the path
    alone, and the receiving process opens the file itself; one in memory is sent with its values.
    Use it in a `with` statement, or `close` it.

    Attributes:
        name: file name for messages ("pbmc3k.h5ad", "AnnData").
        path: absolute path, or None for an AnnData.
        n_cells: number of cells.
        modalities: genes of each modality by its name, in the order of the input; RNA first.
        layers: names that `layer` could have had ("counts", "raw"), for hints.
        layer: the one that is read ("X", "counts", "raw"), asked for or not; None for what has one
            matrix only.
        notes: what to say of how it was opened.
        group: where in the file the AnnData is that it was read as, "mod/rna"; "" for the file
            itself.
        parts, observations: as the arguments.
        columns: names of the columns of obs.
        opened: path as it was given, layer and places of modalities, as `open_input` was asked;
            None for what it did not open from a path.
        identity: what tells cells apart that no file holds, so that a conversion of them can go on.

    Args:
        name, n_cells, path, group, layers, layer, notes, identity: as the attributes.
        parts: the modalities, RNA first.
        observations: barcodes and obs.

    Raises:
        InputError: no cells, no genes, or a matrix of another size than obs and var.

    Example:
        >>> import anndata, numpy, pandas
        >>> from concerto_tf.records.inputs.opening import open_input
        >>> adata = anndata.AnnData(
        ...     numpy.array([[1.0, 0.0], [0.0, 2.0]], dtype="float32"),
        ...     obs=pandas.DataFrame({"day": [3, 5]}, index=["a", "b"]),
        ...     var=pandas.DataFrame(index=["CD3E", "MS4A1"]),
        ... )
        >>> with open_input(adata) as cells:
        ...     print(cells.name, cells.n_cells, cells.genes.ids, cells.barcodes(0, 2))
        ...     print(cells.column("day"))
        ...     print(cells.chunk(1, 2)["rna"].toarray())
        AnnData 2 ('CD3E', 'MS4A1') ['a', 'b']
        (array([0, 1]), ['3', '5'])
        [[0. 2.]]
    """

    def __init__(
        self,
        name: str,
        n_cells: int,
        parts: Mapping[str, InputPart],
        observations: Observations,
        *,
        path: Path | None = None,
        group: str = "",
        layers: Sequence[str] = (),
        layer: str | None = None,
        notes: Sequence[str] = (),
        identity: str | None = None,
    ) -> None:
        self.name = name
        self.path = path
        self.n_cells = n_cells
        self.modalities = {name: part.vocabulary for name, part in parts.items()}
        self.layers = list(layers)
        self.layer = layer
        self.group = group
        self.notes = list(notes)
        self.identity = identity
        self.columns = list(observations.columns)
        self.parts = dict(parts)
        self.observations = observations
        self.opened: tuple[Path, str | None, dict[str, str] | None] | None = None
        self._on_close: Callable[[], None] | None = None
        self._reopen: Callable[[], Input] | None = None
        if n_cells == 0:
            raise InputError(f"{name}: no cells in it; is it the right file?")
        for part in parts.values():
            self._check_size(part)

    @property
    def genes(self) -> Vocabulary:
        """RNA genes in the order of the input."""
        return self.modalities[RNA]

    @property
    def stem(self) -> str:
        """What to call these cells as a source: the file name without suffix, or, where that is the
        same for every sample (Cell Ranger's `outs/filtered_feature_bc_matrix`), a folder above."""
        for path in (self.path, *self.path.parents) if self.path else ():
            stem = path.name
            for suffix in _SUFFIXES:
                stem = stem.removesuffix(suffix)
            if stem and stem not in _NAMELESS:
                return stem
        return self.name

    def column(self, key: str) -> tuple[np.ndarray, list[str]]:
        """A column of obs as codes.

        Categorical, text, integer, truth and float columns are all read as categories; whole floats
        (an integer column with gaps) are written without the ".0".

        Args:
            key: name of the column.

        Returns:
            codes, int64 [n_cells], -1 where the value is missing (NaN, None, NA or empty text), and
            the categories that occur, in the order of the categorical or else ascending.

        Raises:
            InputError: there is no such column; the message names those that are.
        """
        if key not in self.columns:
            raise InputError(f"{self.name}: no column {key!r} in obs; {choices(key, self.columns)}")
        codes, categories = self._reading(
            f"obs/{key}", lambda: codes_and_names(self.observations.values(key))
        )
        if len(codes) != self.n_cells:
            raise InputError(
                f"{self.name}: obs/{key} has {len(codes)} values for {self.n_cells} cells; the "
                "file is damaged"
            )
        return codes, categories

    def values(self, key: str) -> Any:
        """A column of obs as it is stored, [n_cells]; `column` gives codes of it."""
        return self._reading(f"obs/{key}", lambda: self.observations.values(key))

    def barcodes(self, start: int, stop: int) -> list[str]:
        """Names of the cells start to stop, in the order of the input."""
        return self._reading("barcodes", lambda: self.observations.barcodes(start, stop))

    def check_barcodes(self) -> None:
        """Raises InputError if two cells have the same barcode."""
        repeated = self._reading(
            "barcodes", lambda: barcode_repeated(self.observations, self.n_cells)
        )
        if repeated is not None:
            raise InputError(
                f"{self.name}: barcode {repeated!r} names more than one cell; run "
                "adata.obs_names_make_unique() and save again"
            )

    def chunk(self, start: int, stop: int) -> dict[str, sp.csr_matrix]:
        """The values of the cells start to stop.

        Args:
            start: first cell.
            stop: one past the last cell, at most `n_cells`.

        Returns:
            each modality -> [stop - start, genes of the modality], indices int32
            ascending, without zeros or repeated entries. The dtype is that of the input (truth
            values become uint8, half floats float32). The caller may change it in place.

        Raises:
            InputError: a negative, NaN or infinite value (cell and gene are named), or the file is
                damaged.
        """
        if not 0 <= start <= stop <= self.n_cells:
            raise IndexError(f"cells {start} to {stop} of {self.n_cells}")
        return {key: self._read(part, start, stop) for key, part in self.parts.items()}

    def close(self) -> None:
        """Closes the file and removes temporary files; may be called again."""
        if self._on_close is not None:
            self._on_close()
            self._on_close = None

    def __enter__(self) -> Input:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __reduce__(self) -> Any:
        if self._reopen is not None:
            return _open_again, (self._reopen,)
        return super().__reduce__()

    def _check_size(self, part: InputPart) -> None:
        if len(part.vocabulary) == 0:
            raise InputError(f"{self.name}: no genes in {part.where}; is it the right file?")
        n_columns = len(part.vocabulary) if part.columns is None else part.rows.shape[1]
        if part.rows.shape != (self.n_cells, n_columns):
            raise InputError(
                f"{self.name}: {part.where} is {part.rows.shape[0]} x {part.rows.shape[1]} where "
                f"{self.n_cells} cells x {n_columns} genes are due; the file is damaged"
            )

    def _read(self, part: InputPart, start: int, stop: int) -> sp.csr_matrix:
        where = f"{part.where}, cells {start} to {stop}"
        matrix = self._reading(where, lambda: part.rows.read(start, stop))
        if part.columns is not None:
            matrix = matrix[:, part.columns]
        if matrix.dtype == bool:
            matrix = matrix.astype(np.uint8)
        elif matrix.dtype == np.float16:
            matrix = matrix.astype(np.float32)
        smallest = matrix.data.min() if matrix.nnz else 0
        # NaN fails both comparisons.
        if matrix.nnz and not (smallest >= 0 and matrix.data.max() < np.inf):
            raise InputError(self._unsuitable(matrix, part, start))
        if not matrix.has_canonical_format:
            if matrix.dtype.kind in "iu":  # whose sums may not fit
                matrix.data = matrix.data.astype(np.int64)
            matrix.sum_duplicates()
        if smallest == 0:
            matrix.eliminate_zeros()
        return matrix

    def _unsuitable(self, matrix: sp.csr_matrix, part: InputPart, start: int) -> str:
        position = int(np.flatnonzero(~((matrix.data >= 0) & (matrix.data < np.inf)))[0])
        value = matrix.data[position]
        row = start + int(np.searchsorted(matrix.indptr, position, side="right")) - 1
        gene = part.vocabulary.names[matrix.indices[position]]
        if np.isnan(value):
            what, mend = "NaN", "set it to 0 or leave the cell out"
        elif np.isinf(value):
            what, mend = "an infinite value", "set it to 0 or leave the cell out"
        else:
            what = f"a negative value ({value:g})"
            mend = "counts are needed, not scaled or centered values"
            if self.layers:
                mend += f"; choose another layer: {', '.join(self.layers)}"
        return (
            f"{self.name}: {what} in {part.where}, cell {self.barcodes(row, row + 1)[0]!r}, "
            f"gene {gene!r}; {mend}"
        )

    def _reading(self, where: str, read: Callable[[], Any]) -> Any:
        """Runs a read; whatever a damaged file makes the libraries raise becomes an InputError."""
        try:
            return read()
        except InputError as error:
            raise InputError(f"{self.name}: {where}: {error.message}", error.argument) from error
        except Exception as error:  # noqa: BLE001 - whatever is raised, the file is what is wrong
            blamed = "the file is damaged" if self.path else "it is damaged, or its file is closed"
            raise InputError(
                f"{self.name}: {where} cannot be read ({first_line(error)}); "
                f"{not_damage(error) or blamed}"
            ) from error


def not_damage(error: BaseException) -> str | None:
    """What to do about an error that is not the file's fault; None where it is."""
    if isinstance(error, MemoryError):
        return "there is not enough memory; close other programs, or take a larger machine"
    if isinstance(error, PermissionError):
        return "you are not permitted to read it; ask its owner, or copy it"
    return None


def _open_again(reopen: Callable[[], Input]) -> Input:
    return reopen()
