"""A lazy AnnData (`anndata.experimental.read_lazy`): its tables, and its matrices in parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: Rows of a matrix that are in memory at once.
_ROWS = 4096


def held(table: Any) -> Any:
    """A lazy table in memory; anything else as it is."""
    lazy = hasattr(table, "to_memory") and not hasattr(table, "iterrows")
    return table.to_memory() if lazy and hasattr(table, "columns") else table


def row_blocks(matrix: Any) -> Iterator[Any]:
    """A lazy matrix in memory, some rows at a time; any other as it is, and nothing of None."""
    if hasattr(matrix, "compute"):
        yield from (matrix[i : i + _ROWS].compute() for i in range(0, matrix.shape[0], _ROWS))
    elif matrix is not None:
        yield matrix
