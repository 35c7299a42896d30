"""What an input says about its cells: barcodes, and columns of obs as codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


class Observations(Protocol):
    """Barcodes and obs of an input."""

    columns: list[str]

    def barcodes(self, start: int, stop: int) -> list[str]:
        """Names of the cells start to stop."""

    def values(self, key: str) -> Any:
        """A column of obs, as pandas or NumPy hold it, [n_cells]."""


@dataclass
class BarcodeObservations:
    """Cells that have a barcode and nothing else (10x).

    Args:
        names: a list, or an array on disk, of text.
    """

    names: Any
    columns: list[str] = field(default_factory=list)

    def barcodes(self, start: int, stop: int) -> list[str]:
        return read_text(self.names, start, stop)

    def values(self, key: str) -> Any:
        raise KeyError(key)


class FrameObservations:
    """obs of an AnnData in memory.

    Args:
        frame: the data frame.
    """

    def __init__(self, frame: Any) -> None:
        self.columns = list(map(str, frame.columns))
        self._frame = frame

    def barcodes(self, start: int, stop: int) -> list[str]:
        return list(map(str, self._frame.index[start:stop]))

    def values(self, key: str) -> Any:
        return self._frame.iloc[:, self.columns.index(key)]


class StoredFrame:
    """A data frame as anndata writes it to HDF5 or zarr, read column by column.

    Serves as obs, and as var through `index` and `values`.

    Args:
        group: the group on disk.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self._index = group[group.attrs["_index"]]
        if hasattr(self._index, "keys"):
            # Newer anndata may write text as a group of values and mask.
            self._index = self._index["values"]
        self.columns = [str(name) for name in group.attrs["column-order"]]

    def __len__(self) -> int:
        return int(self._index.shape[0])

    @property
    def index(self) -> list[str]:
        """All row names."""
        return self.barcodes(0, len(self))

    def barcodes(self, start: int, stop: int) -> list[str]:
        return read_text(self._index, start, stop)

    def values(self, key: str) -> Any:
        from anndata.io import read_elem

        column = self._group[key]
        if "categories" in column.attrs and not hasattr(column, "keys"):
            return self._old_categories(column)
        return read_elem(column)

    def _old_categories(self, column: Any) -> Any:
        """A categorical as anndata 0.7 wrote it: codes that refer to names stored elsewhere."""
        import pandas as pd

        reference = column.attrs["categories"]
        stored = (
            self._group[reference] if isinstance(reference, str) else column.file[reference]
        )
        if stored.dtype.kind in "OS":
            names: Any = read_text(stored, 0, stored.shape[0])
        else:
            names = stored[:]
        return pd.Categorical.from_codes(np.asarray(column[:], np.int64), names)


def read_text(texts: Any, start: int, stop: int) -> list[str]:
    """Part of a list of text, or of an array of text in HDF5, zarr or NumPy.

    Args:
        texts: list or array.
        start: first.
        stop: one past the last.

    Returns:
        Python strings.
    """
    # h5py gives bytes unless asked otherwise; other arrays have no `asstr`.
    part = texts.asstr()[start:stop] if hasattr(texts, "asstr") else texts[start:stop]
    return [text.decode() if isinstance(text, bytes) else str(text) for text in part]


def as_codes(values: Any) -> tuple[np.ndarray, list[str]]:
    """Any column as int64 codes and the categories that occur.

    Args:
        values: categorical, text, integers, truth values or floats, [n].

    Returns:
        codes, int64 [n], -1 where missing (NaN, None, NA or empty text); categories as text, in the
        order of the categorical, otherwise ascending.

    Example:
        >>> as_codes([2.0, 10.0, float("nan"), 2.0])
        (array([ 0,  1, -1,  0]), ['2', '10'])
        >>> as_codes(["T", "", "B"])
        (array([ 1, -1,  0]), ['B', 'T'])
    """
    import pandas as pd

    values = pd.Series(values)
    if not isinstance(values.dtype, pd.CategoricalDtype):
        try:
            values = values.astype("category")
        except TypeError:
            values = values.map(_text, na_action="ignore").astype("category")
    codes = values.cat.codes.to_numpy().astype(np.int64)
    texts = [_text(category) for category in values.cat.categories]
    used = set(np.unique(codes).tolist())
    categories: dict[str, int] = {}
    for position, text in enumerate(texts):
        if text and position in used:
            categories.setdefault(text, len(categories))
    # The last entry serves code -1.
    table = np.array([*(categories.get(text, -1) for text in texts), -1], dtype=np.int64)
    return table[codes], list(categories)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def barcode_repeated(observations: Observations, n_cells: int, step: int = 65536) -> str | None:
    """The first barcode that two cells share, or None.

    Memory is 8 bytes per cell: only hashes are kept until two are equal.

    Args:
        observations: of an input.
        n_cells: number of cells.
        step: barcodes read at once.

    Returns:
        The barcode.
    """
    from pandas.util import hash_array

    hashes = np.concatenate(
        [
            hash_array(np.array(observations.barcodes(i, min(i + step, n_cells)), dtype=object))
            for i in range(0, n_cells, step)
        ]
    )
    order = np.argsort(hashes, kind="stable")
    again = order[1:][hashes[order[1:]] == hashes[order[:-1]]]
    before = order[:-1][hashes[order[1:]] == hashes[order[:-1]]]
    for one, other in sorted(zip(again.tolist(), before.tolist(), strict=True)):
        name = _barcode(observations, one)
        if name == _barcode(observations, other):
            return name
    return None


def _barcode(observations: Observations, cell: int) -> str:
    return observations.barcodes(cell, cell + 1)[0]


def choices(key: str, there: Sequence[str], shown: int = 12) -> str:
    """Names what is there, the most similar to `key` first.

    Example:
        >>> choices("celltype", ["batch", "cell_type"])
        "did you mean 'cell_type'? There are: batch, cell_type"
        >>> choices("celltype", [])
        'there are none'
    """
    import difflib

    if not there:
        return "there are none"
    near = difflib.get_close_matches(key.lower(), [name.lower() for name in there], n=1)
    original = next((name for name in there if near and name.lower() == near[0]), None)
    hint = f"did you mean {original!r}? T" if original else "t"
    more = f" and {len(there) - shown} more" if len(there) > shown else ""
    return f"{hint}here are: {', '.join(there[:shown])}{more}"
