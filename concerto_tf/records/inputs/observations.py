"""What an input says about its cells: barcodes, and columns of obs as codes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.records.inputs.rows import native

_CATEGORIES = "__categories"
#: The smallest whole number of R, which is its NA.
_R_NA = -(2**31)
# Values that need no explanation, and the most that a byte of a compressed file may stand for.
_FREE_VALUES, _MOST_PER_BYTE = 2**20, 8


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
        return check_texts(list(map(str, self._frame.index[start:stop])))

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
        index = index_name(group)
        if index is None:
            raise InputError(f"{group.name} names no rows; read the file and save it again")
        self._index = group[index]
        if hasattr(self._index, "keys"):
            # Newer anndata may write text as a group of values and mask.
            self._index = self._index["values"]
        check_stored(self._index)
        self.columns = column_names(group, index)

    def __len__(self) -> int:
        return int(self._index.shape[0])

    @property
    def index(self) -> list[str]:
        """All row names."""
        return self.barcodes(0, len(self))

    def barcodes(self, start: int, stop: int) -> list[str]:
        return read_text(self._index, start, stop)

    def values(self, key: str) -> Any:
        column = self._group[key]
        for part in map(column.get, column) if hasattr(column, "keys") else [column]:
            if part.shape != self._index.shape:  # of the names of categories
                check_stored(part)
        # Text, alone or as categories, is what is mostly asked for, and quicker read than anndata
        # is imported.
        kind = as_text(column.attrs.get("encoding-type"))
        if kind == "string-array":
            return np.array(read_text(column, 0, column.shape[0]), object)
        names = column.get("categories") if hasattr(column, "keys") else None
        if kind in ("categorical", "") and names is not None and not hasattr(names, "keys"):
            ordered = bool(np.any(column.attrs.get("ordered", False)))
            return _categorical(column["codes"], column["categories"], ordered)
        if not hasattr(column, "keys"):
            categories = self._old_categories(key, column)
            if categories is not None:
                return _categorical(column, categories)
            if column.shape != self._index.shape and column.size == len(self):
                return np.ravel(column[:])  # a column that R wrote as a matrix
        elif kind in ("nullable-integer", "nullable-boolean"):
            return _nullable(column, kind)
        from anndata.io import read_elem

        return read_elem(column)

    def _old_categories(self, key: str, column: Any) -> Any:
        """The names of codes that lie elsewhere, as anndata 0.7 and, without a word of it on the
        column, SeuratDisk wrote them; None of a column that is no codes."""
        if "categories" in column.attrs:
            reference = column.attrs["categories"]
            named = isinstance(reference, str)
            return self._group[reference] if named else column.file[reference]
        place = f"{_CATEGORIES}/{key}"
        return self._group[place] if place in self._group and column.dtype.kind in "iu" else None


def as_text(value: Any) -> str:
    """An attribute as text: R's writers leave bytes, or an array of one; "" where there is none."""
    if isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else None
    if value is None:
        return ""
    return value.decode() if isinstance(value, bytes) else str(value)


def index_name(group: Any) -> str | None:
    """Which member of a stored data frame names its rows; None where none does."""
    told = as_text(group.attrs.get("_index"))
    return next((name for name in ([told] if told else ["_index", "index"]) if name in group), None)


def column_names(group: Any, index: str | None = None) -> list[str]:
    """Columns of a stored data frame, of which some writers note no order."""
    if "column-order" in group.attrs:
        return [as_text(name) for name in np.ravel(group.attrs["column-order"])]
    return [name for name in group if name not in (_CATEGORIES, index)]


def _nullable(column: Any, kind: str) -> Any:
    """Numbers with gaps, whose mask R's writers store as whole numbers."""
    import pandas as pd

    mask, values = np.asarray(column["mask"][:], bool), np.asarray(column["values"][:])
    if kind == "nullable-boolean":
        return pd.arrays.BooleanArray(values.astype(bool), mask)
    return pd.arrays.IntegerArray(native(values), mask)


def _is_text(stored: Any) -> bool:
    return getattr(stored, "attrs", {}).get("encoding-type") == "string-array"


def _categorical(codes: Any, categories: Any, ordered: bool = False) -> Any:
    import pandas as pd

    if _is_text(categories) or categories.dtype.kind in "OS":
        names = read_text(categories, 0, categories.shape[0])
    else:
        names = categories[:]
    numbers = np.ravel(codes[:])
    if numbers.dtype.kind == "i":
        numbers = np.where(numbers == _R_NA, -1, numbers)
    return pd.Categorical.from_codes(numbers, names, ordered=ordered)


def check_stored(array: Any) -> None:
    """Raises InputError if an array says that it holds more than its bytes can, before it is read.

    Args:
        array: Of names, or other values that are hardly ever the same, in HDF5 or zarr.
    """
    n_values = math.prod(array.shape)
    if n_values > _FREE_VALUES:
        stored = array.id.get_storage_size() if hasattr(array, "id") else array.nbytes_stored()
        if n_values > _MOST_PER_BYTE * stored:
            raise InputError(f"{array.name} is said to hold {n_values} values in {stored} bytes")


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
    return check_texts([text.decode() if isinstance(text, bytes) else str(text) for text in part])


def check_texts(texts: list[str]) -> list[str]:
    """The names themselves, or InputError where one cannot be written as text (UTF-8)."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        bad = next(text for text in texts if not _is_unicode(text))
        raise InputError(
            f"the name {bad!r} holds half of a character (a surrogate); rename it"
        ) from None
    return texts


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def codes_and_names(values: Any) -> tuple[np.ndarray, list[str]]:
    """Any column as int64 codes and the categories that occur.

    Args:
        values: categorical, text, integers, truth values or floats, [n].

    Returns:
        codes, int64 [n], -1 where missing (NaN, None, NA or empty text); categories as text, in the
        order of the categorical, otherwise ascending.

    Example:
        >>> codes_and_names([2.0, 10.0, float("nan"), 2.0])
        (array([ 0,  1, -1,  0]), ['2', '10'])
        >>> codes_and_names(["T", "", "B"])
        (array([ 1, -1,  0]), ['B', 'T'])
    """
    import pandas as pd

    values = pd.Series(values)
    if isinstance(values.dtype, np.dtype) and not values.dtype.isnative:
        values = pd.Series(values.to_numpy().astype(values.dtype.newbyteorder("=")))
    _check_one_type(values.cat.categories if hasattr(values, "cat") else values)
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
    check_texts(list(categories))
    # The last entry serves code -1.
    table = np.array([*(categories.get(text, -1) for text in texts), -1], dtype=np.int64)
    return table[codes], list(categories)


def _check_one_type(values: Any) -> None:
    """Raises InputError where different values would be one as text, as 1, "1" and True."""
    import pandas as pd

    if values.dtype != object:
        return
    given = values[~pd.isna(values)]
    truth = [isinstance(value, bool | np.bool_) for value in given]
    if any(truth) and not all(truth):
        raise InputError("truth values are mixed with others; make the column of one type")
    kinds: dict[str, bool] = {}
    for value in given:
        text = isinstance(value, str | bytes)
        if kinds.setdefault(_text(value), text) != text:
            raise InputError(
                f"holds {_text(value)} as a number and as text; make the column of one type, as "
                "adata.obs[...].astype(str) does"
            )


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
