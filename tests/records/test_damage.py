"""Damaged records: what is found, and how it is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import anndata
import pytest
import tensorflow as tf

from concerto_tf.errors import InputError
from concerto_tf.records import Records, convert
from concerto_tf.records.manifest import _checksum

pytestmark = pytest.mark.stack


@pytest.fixture
def records(cells: anndata.AnnData, tmp_path: Path) -> Records:
    return convert(cells, tmp_path / "records", shards=5)


def read(dataset: tf.data.Dataset) -> None:
    for _ in dataset:
        pass


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("position", [0, 13, 60, -1])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_flipped_bit_is_found_and_named(
    cells: anndata.AnnData, tmp_path: Path, position: int, compression: str
) -> None:
    records = convert(cells, tmp_path / "r", shards=3, compression=compression)
    shard = records.manifest.shards[1].file
    flip(records.path / shard, position)
    assert records.verify() == [f"{shard} is damaged (its checksum differs)"]
    # The last bytes of a gzip file are its length, which says nothing of a cell.
    if compression == "none" or position != -1:
        for shuffle in (False, True):
            with pytest.raises(InputError, match=f"{shard} is damaged"), records.naming_damage():
                read(records.dataset(16, shuffle=shuffle))


def test_truncated_and_missing_shards_do_not_open(records: Records) -> None:
    shard = records.path / records.manifest.shards[2].file
    content = shard.read_bytes()
    shard.write_bytes(content[:-20])
    with pytest.raises(InputError, match=f"{shard.name} has {len(content) - 20} bytes instead of"):
        Records(records.path)
    assert len(records.verify()) == 1
    with pytest.raises(InputError, match=shard.name), records.naming_damage():
        read(records.dataset(16))
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard.name} is missing"):
        Records(records.path)
    with pytest.raises(InputError, match=f"{shard.name} is missing"), records.naming_damage():
        read(records.dataset(16))


def forge(records: Records, change) -> Records:
    """Opens the records with a manifest that was changed together with its checksum."""
    path = records.path / "manifest.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    change(content)
    path.write_text(json.dumps({**content, "checksum": _checksum(content)}))
    return Records(records.path)


def test_a_manifest_that_lies_about_counts(records: Records) -> None:
    def lie(content: dict) -> None:
        content["n_cells"] += 1
        content["shards"][0]["n_cells"] += 1
        content["shards"][0]["cells_per_source"][0] += 1

    forged = forge(records, lie)
    assert ["cells per source instead of" in problem for problem in forged.verify()] == [True]
    # 200 cells fill 20 batches of 10; the 201st is missed at the end.
    with pytest.raises(InputError, match="cells per source"), forged.naming_damage():
        read(forged.dataset(10))


def test_swapped_shards(records: Records) -> None:
    first, second = (records.path / shard.file for shard in records.manifest.shards[:2])
    shutil.move(first, records.path / "x")
    shutil.move(second, first)
    shutil.move(records.path / "x", second)
    with pytest.raises(InputError, match="bytes instead of"):
        Records(records.path)


def test_a_renamed_gene(records: Records) -> None:
    path = records.path / "vocabulary.tsv"
    path.write_text(path.read_text().replace("AB17C", "AB71C"))
    with pytest.raises(InputError, match="vocabulary.tsv: is damaged or was changed"):
        Records(records.path).vocabulary  # noqa: B018
    assert len(records.verify()) == 1
    path.unlink()
    assert "cannot be read" in records.verify()[0]


def test_errors_of_others_pass_through(records: Records) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError), records.naming_damage():
        tf.ensure_shape(tf.zeros(2), [3])
