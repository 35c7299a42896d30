"""Minibatches of the cells of one source, as Concerto's source-aware training is printed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.errors import InputError
from concerto_tf.records import Records, convert


@pytest.fixture
def records(make_cells, tmp_path: Path) -> Records:
    cells = make_cells(120)
    cells.obs["batch"] = np.repeat(["a", "b", "c"], [60, 37, 23])
    return convert(cells, tmp_path / "records", source_key="batch", shards=3)


def batches(dataset: tf.data.Dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(b["source"].numpy(), b["row"].numpy()) for b in dataset]


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_is_of_one_source_and_an_epoch_of_every_cell(
    records: Records, packed: bool
) -> None:
    dataset = records.dataset(8, one_source=True, packed=packed)
    found = batches(dataset)
    assert len(found) == int(dataset.cardinality()) == 8 + 5 + 3
    assert all(len(set(source[source >= 0])) == 1 for source, _ in found)
    rows = np.concatenate([row[row >= 0] for _, row in found])
    np.testing.assert_array_equal(np.sort(rows), np.arange(120))
    known = records.obs()
    names = np.array(records.sources)
    for source, row in found:
        there = row >= 0
        np.testing.assert_array_equal(names[source[there]], known["source"][row[there]])


def test_shuffled_epochs_differ_and_follow_from_the_seed(records: Records) -> None:
    def epochs(seed: int) -> list[list[int]]:
        data = records.dataset(8, one_source=True, shuffle=True, seed=seed, repeat=True)
        rows = [row.tolist() for _, row in batches(data.take(2 * (7 + 4 + 2)))]
        return [sum(rows[:13], []), sum(rows[13:], [])]

    first, second = epochs(0)
    assert first != second and [first, second] == epochs(0) != epochs(1)
    assert len(set(first)) == len(first) == 104, "whole batches of each source, no cell twice"
    names = records.obs()["source"]
    assert Counter(names[first]) == {"a": 56, "b": 32, "c": 16}


def test_sources_come_mixed_otherwise(records: Records) -> None:
    assert any(len(set(source)) > 1 for source, _ in batches(records.dataset(8, shuffle=True)))


def test_a_source_that_fills_no_batch_is_named(records: Records) -> None:
    with pytest.raises(
        InputError, match="source 'c' has 23 cells, which do not fill a batch of 24"
    ):
        records.dataset(24, one_source=True, shuffle=True)
    assert len(batches(records.dataset(24, one_source=True))) == 3 + 2 + 1
