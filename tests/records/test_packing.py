from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.records.packing import group_size, pack, packed_width


def padded(lengths: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    k = max(lengths)
    genes, values = np.zeros((len(lengths), k), np.int32), np.zeros((len(lengths), k), np.float32)
    for i, n in enumerate(lengths):
        genes[i, :n] = np.sort(rng.choice(1000, n, replace=False))
        values[i, :n] = rng.integers(1, 9, n)
    return genes, values, values > 0


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
    genes, values, wanted = padded([3, 30, 0, 9, 1, 2, 28, 29])
    g, v, offset = (x.numpy() for x in pack(genes, values, wanted, group, width))
    want = [dict(zip(a[w], b[w], strict=True)) for a, b, w in
            zip(genes, values, wanted, strict=True)]
    assert unpacked(g, v, offset) == want
    assert g.shape[1] % width == 0 and np.log2(g.shape[1] / width) % 1 == 0


def test_a_slice_of_whole_groups_is_packed_too() -> None:
    genes, values, wanted = padded([5, 1, 6, 2])
    whole = pack(genes, values, wanted, 2, 4)
    half = [x[2:].numpy() for x in whole]
    want = [dict(zip(genes[i][wanted[i]], values[i][wanted[i]], strict=True)) for i in (2, 3)]
    assert unpacked(*half) == want


def test_uneven_cells_take_the_room_of_their_mean() -> None:
    lengths = [10] * 31 + [300]
    genes, values, wanted = padded(lengths)
    width = packed_width(np.mean(lengths), max(lengths), 32)
    g, *_ = pack(genes, values, wanted, 32, width)
    assert g.shape == (32, 32) and genes.shape == (32, 300)


def test_works_inside_tf_data() -> None:
    genes, values, wanted = padded([3, 30, 0, 9])
    data = tf.data.Dataset.from_tensors((genes, values, wanted)).map(
        lambda g, v, w: pack(g, v, w, 4, 8)
    )
    g, v, offset = next(iter(data))
    assert sum(map(len, unpacked(g.numpy(), v.numpy(), offset.numpy()))) == 42


@pytest.mark.parametrize(
    ("cells", "replicas", "group"), [(256, 1, 32), (124, 1, 31), (127, 1, 1), (20, 2, 10)]
)
def test_groups_divide_a_replicas_batch(cells: int, replicas: int, group: int) -> None:
    assert group_size(cells, replicas) == group
