from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.records.packing import pack
from concerto_tf.records.padding import BatchLayout, group_size, packed_width

pytestmark = pytest.mark.stack


def flat(lengths: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Genes and values of cells one after the other, and how many each cell has."""
    rng = np.random.default_rng(seed)
    genes = [np.sort(rng.choice(1000, n, replace=False)) for n in lengths]
    values = rng.integers(1, 9, sum(lengths))
    return np.concatenate(genes).astype("i4"), values.astype("f4"), np.array(lengths, np.int32)


def by_cell(genes, values, lengths) -> list[dict[int, float]]:
    ends = np.cumsum(lengths)
    return [
        dict(zip(genes[end - n : end], values[end - n : end], strict=True))
        for n, end in zip(lengths, ends, strict=True)
    ]


def unpacked(genes, values, offset) -> list[dict[int, float]]:
    """Each cell's genes, taken from wherever they stand."""
    cells: list[dict[int, float]] = [{} for _ in genes]
    for r, row in enumerate(values):
        for j in np.flatnonzero(row):
            cells[r + offset[r, j]][genes[r, j]] = row[j]
    return cells


@pytest.mark.parametrize("width", [4, 7, 30])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_every_value_is_kept_and_finds_its_cell(width: int, group: int) -> None:
    cells = flat([3, 30, 0, 9, 1, 2, 28, 29])
    g, v, offset = (x.numpy() for x in pack(*cells, group, width))
    assert unpacked(g, v, offset) == by_cell(*cells)
    assert g.shape[1] % width == 0 and np.log2(g.shape[1] / width) % 1 == 0


@pytest.mark.parametrize("width", [4, 7, 30])
@pytest.mark.parametrize("group", [2, 4])
def test_numpy_packs_as_tensorflow_does(width: int, group: int) -> None:
    cells = flat([3, 30, 0, 9, 1, 2, 28, 29])
    for ours, theirs in zip(
        BatchLayout(width, group).fill(*cells), pack(*cells, group, width), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs.numpy())
        assert ours.dtype == theirs.numpy().dtype


def test_padded_cells_have_rows_of_their_own() -> None:
    cells = flat([3, 30, 0, 9])
    genes, values, offset = BatchLayout(32).fill(*cells)
    assert genes.shape == (4, 32) and offset is None
    assert unpacked(genes, values, np.zeros_like(genes)) == by_cell(*cells)


def test_a_slice_of_whole_groups_is_packed_too() -> None:
    cells = flat([5, 1, 6, 2])
    half = [x[2:].numpy() for x in pack(*cells, 2, 4)]
    assert unpacked(*half) == by_cell(*cells)[2:]


def test_uneven_cells_take_the_room_of_their_mean() -> None:
    lengths = [10] * 31 + [300]
    width = packed_width(np.mean(lengths), max(lengths), 32)
    g, *_ = pack(*flat(lengths), 32, width)
    assert g.shape == (32, 32)


def test_works_inside_tf_data() -> None:
    data = tf.data.Dataset.from_tensors(flat([3, 30, 0, 9])).map(lambda *x: pack(*x, 4, 8))
    g, v, offset = next(iter(data))
    assert sum(map(len, unpacked(g.numpy(), v.numpy(), offset.numpy()))) == 42


@pytest.mark.parametrize(
    ("cells", "replicas", "group"), [(256, 1, 64), (124, 1, 62), (127, 1, 1), (20, 2, 10)]
)
def test_groups_divide_a_replicas_batch(cells: int, replicas: int, group: int) -> None:
    assert group_size(cells, replicas) == group
