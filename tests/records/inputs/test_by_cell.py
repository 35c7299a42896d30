from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from concerto_tf.errors import InputError
from concerto_tf.records.inputs.by_cell import column_entries, sort_by_cell


def matrix(n_cells: int = 53, n_genes: int = 17) -> sp.csc_matrix:
    return sp.random(n_cells, n_genes, 0.3, format="csc", dtype=np.float32, rng=0)


@pytest.mark.parametrize("entries_per_file", [1, 40, 10**6])
@pytest.mark.parametrize("slab", [7, 10**6])
def test_rows_of_a_column_ordered_matrix(tmp_path: Path, entries_per_file: int, slab: int) -> None:
    stored = matrix()
    entries = column_entries(stored.data, stored.indices, stored.indptr, 17, slab)
    rows = sort_by_cell(
        entries, stored.shape, stored.nnz, stored.dtype, tmp_path / "copy", entries_per_file
    )
    dense = stored.toarray()
    for start, stop in [(0, 53), (0, 1), (10, 11), (12, 31), (52, 53), (5, 5)]:
        read = rows.read(start, stop)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read.toarray(), dense[start:stop])
    # Nothing but the finished copy is left.
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_slabs_are_bounded() -> None:
    stored = matrix()
    slabs = list(column_entries(stored.data, stored.indices, stored.indptr, 17, 10))
    assert max(len(cells) for cells, _, _ in slabs) == 10
    assert sum(len(cells) for cells, _, _ in slabs) == stored.nnz


def test_cells_without_entries(tmp_path: Path) -> None:
    entries = [(np.array([9]), np.array([1]), np.array([4.0]))]
    rows = sort_by_cell(entries, (12, 2), 1, np.dtype(np.float64), tmp_path / "copy", 1)
    assert rows.read(0, 12).toarray()[:, 1].tolist() == [0] * 9 + [4, 0, 0]
    none = sort_by_cell([], (3, 2), 0, np.dtype(np.int32), tmp_path / "none")
    assert none.read(0, 3).nnz == 0


@pytest.mark.parametrize(
    ("cell", "gene", "n_entries", "message"),
    [
        (3, 0, 1, "an entry names cell 4 of 3; the file is damaged"),
        (0, 2, 1, "an entry names gene 3 of 2; the file is damaged"),
        (-1, 0, 1, "an entry names cell 0 of 3; the file is damaged"),
        (0, 0, 5, "1 entries where 5 are announced; the file is truncated"),
    ],
)
def test_damage_leaves_nothing(
    tmp_path: Path, cell: int, gene: int, n_entries: int, message: str
) -> None:
    entries = [(np.array([cell]), np.array([gene]), np.array([1]))]
    with pytest.raises(InputError, match=message):
        sort_by_cell(entries, (3, 2), n_entries, np.dtype(np.int32), tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []
