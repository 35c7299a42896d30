"""Records that are damaged anywhere: found, named, never read past; the rest can be read on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf import InputError, Records, convert, inspect
from concerto_tf.records.manifest import Manifest


def read(path: Path, **options: bool) -> dict[int, tuple]:
    """What each cell holds, by its row."""
    records, found = Records(path, **options), {}
    with records.naming_damage():
        data = records.dataset(32, labels=["kind"], cells=True, pad_last=False)
        for batch in data.as_numpy_iterator():
            for i, row in enumerate(batch["row"].tolist()):
                assert row not in found
                found[row] = tuple(
                    np.asarray(batch[key][i]).tolist()
                    for key in ("genes", "values", "source", "cell", "label/kind")
                )
    assert len(found) == records.n_cells
    return found


def refused(path: Path, name: str) -> None:
    """Asserts that damage is named by `verify` and stops who reads."""
    with pytest.raises(InputError, match=name):
        read(path)
    try:
        problems = inspect(path, verify=True)["problems"]
    except InputError as error:
        problems = [str(error)]
    assert any(name in problem for problem in problems), problems


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir())


@pytest.mark.parametrize("n", [30, pytest.param(500, marks=pytest.mark.slow)])
def test_a_flipped_bit_anywhere_is_found(
    n: int, copied: Callable[[], Path], count: Callable
) -> None:
    folder, rng = copied(), np.random.default_rng(0)
    sizes = {path: path.stat().st_size for path in files(folder)}
    # Half of the places over all bytes, half over the files, of which some are small.
    chosen = rng.choice(sum(sizes.values()), n // 2).tolist()
    places = [divide(sizes, at) for at in chosen]
    while len(places) < n:
        path = list(sizes)[len(places) % len(sizes)]
        places.append((path, int(rng.integers(sizes[path]))))
    for path, at in places:
        content = path.read_bytes()
        harmed = bytearray(content)
        harmed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(harmed)
        refused(folder, path.name)
        count("noticed")
        path.write_bytes(content)
    read(folder)


def divide(sizes: dict[Path, int], at: int) -> tuple[Path, int]:
    """The file and the place in it of a place in all files, one after the other."""
    for path, size in sizes.items():
        if at < size:
            return path, at
        at -= size
    raise IndexError(at)


@pytest.mark.parametrize("n", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_a_file_cut_short_anywhere_is_found(n: int, copied: Callable[[], Path]) -> None:
    folder = copied()
    for path in files(folder):
        content = path.read_bytes()
        # The last byte of the manifest is a line break, which says nothing.
        for size in np.linspace(0, len(content.strip()) - 1, n).astype(int):
            os.truncate(path, size)
            refused(folder, path.name)
            path.write_bytes(content)
        path.write_bytes(content + b"\0")
        refused(folder, path.name)
        path.write_bytes(content)
    read(folder)


def test_checksums_within_a_shard_cover_every_bit(cells, tmp_path: Path) -> None:
    """Damage that comes after the files were checked shows while they are read."""
    records = convert(cells[:2].copy(), tmp_path / "records", shards=1)
    path = records.path / records.manifest.shards[0].file
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 89):
        harmed = bytearray(content)
        harmed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(harmed)
        with pytest.raises(tf.errors.DataLossError):
            list(tf.data.TFRecordDataset(str(path)))
    path.write_bytes(content)
    data = records.dataset(2)
    path.write_bytes(harmed)
    with pytest.raises(InputError, match=path.name), records.naming_damage():
        list(data)


def test_a_missing_file_is_named(copied: Callable[[], Path]) -> None:
    folder = copied()
    for path in files(folder):
        path.rename(folder.parent / "away")
        refused(folder, path.name)
        (folder.parent / "away").rename(path)
    read(folder)


def test_swapped_shards_of_one_size_are_found(cells, tmp_path: Path) -> None:
    """Size and number of cells are the same, and the checksums within are right."""
    one, other = (
        convert(cells[start:].copy(), tmp_path / name, source_key="batch", label_keys=["kind"])
        for start, name in ((0, "one"), (2, "other"))
    )
    same = cells.copy()
    same.obs["kind"] = same.obs["kind"].map({"T": "B", "B": "T", "NK": "NK"})
    twin = convert(same, tmp_path / "twin", source_key="batch", label_keys=["kind"])
    shard = one.manifest.shards[0]
    assert shard.bytes == twin.manifest.shards[0].bytes
    assert shard.cells_per_source == twin.manifest.shards[0].cells_per_source
    for stranger in (other, twin):
        shutil.copy(stranger.path / shard.file, one.path / shard.file)
        refused(one.path, shard.file)
        # Nothing in it is damaged: its cells are those of somebody else.
        with pytest.raises(InputError, match="no cell in it is intact"):
            Records(one.path, skip_damaged=True)


EDITS = {
    "fewer cells": lambda text: text.replace('"n_cells": 90', '"n_cells": 89'),
    "another seed": lambda text: text.replace('"seed": 0', '"seed": 1'),
    "sources swapped": lambda text: text.replace('"a"', '"x"').replace('"b"', '"a"'),
    "a label renamed": lambda text: text.replace('"NK"', '"NKT"'),
    "counts called values": lambda text: text.replace('"counts"', '"values"'),
    "no checksum": lambda text: text.replace('"checksum"', '"checksums"'),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=list(EDITS))
def test_an_edited_manifest_is_refused(edit: Callable, whole: Records, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole.path, tmp_path / "records"))
    path = folder / "manifest.json"
    text = path.read_text("utf-8")
    path.write_text(edit(text), "utf-8")
    assert path.read_text("utf-8") != text
    refused(folder, "manifest.json")


def shards_of(folder: Path) -> list[Path]:
    return [folder / shard.file for shard in Manifest.load(folder).shards]


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def test_all_cells_but_the_damaged_ones_are_read_on(cells, tmp_path: Path, caplog) -> None:
    """One flipped bit costs one cell, wherever in the cell it is; what is left is as it was."""
    records = convert(
        cells, tmp_path / "records", source_key="batch", label_keys=["kind"], shards=3
    )
    before, path = read(records.path), shards_of(records.path)[1]
    size = path.stat().st_size
    length = int.from_bytes(path.read_bytes()[:8], "little")
    for at in (0, 7, 9, 12, 12 + length // 2, 12 + length, size // 2, size - 1):
        flip(path, at)
        caplog.clear()
        left = read(records.path, skip_damaged=True)
        assert len(left) == 89 and left.items() < before.items()
        assert Records(records.path, skip_damaged=True).lost == {path.name: 1}
        assert f"{path.name} is damaged" in caplog.text and "1 of its" in caplog.text
        assert "continues with 89 of 90 cells" in caplog.text
        flip(path, at)
    assert Records(records.path, skip_damaged=True).lost == {}


def test_what_is_behind_the_damage_is_lost_where_it_is_compressed(cells, tmp_path: Path) -> None:
    records = convert(
        cells,
        tmp_path / "records",
        source_key="batch",
        label_keys=["kind"],
        shards=1,
        compression="gzip",
    )
    before, (path,) = read(records.path), shards_of(records.path)
    flip(path, path.stat().st_size * 3 // 4)
    left = read(records.path, skip_damaged=True)
    assert 30 < len(left) < 90 and left.items() < before.items()
    lost = Records(records.path, skip_damaged=True).lost
    assert lost == {path.name: 90 - len(left)}


def test_shards_that_are_missing_or_cut_short_are_skipped(copied: Callable[[], Path]) -> None:
    folder = copied()
    before, (first, second, third) = read(folder), Manifest.load(folder).shards
    (folder / first.file).unlink()
    os.truncate(folder / third.file, third.bytes // 2)
    records = Records(folder, skip_damaged=True)
    left = read(folder, skip_damaged=True)
    assert left.items() < before.items() and len(left) > second.n_cells
    assert records.lost == {first.file: first.n_cells, third.file: 90 - first.n_cells - len(left)}
    assert records.n_cells == len(left) == sum(records.manifest.cells_per_source)
    assert records.verify() == []
    assert len(records.obs()["cell"]) == len(left)
    (folder / second.file).write_bytes(b"")
    (folder / third.file).write_bytes(b"")
    with pytest.raises(InputError, match="no cell in it is intact; convert again"):
        Records(folder, skip_damaged=True)


def test_vocabulary_and_manifest_cannot_be_skipped(copied: Callable[[], Path]) -> None:
    for name in ("vocabulary.tsv", "manifest.json"):
        folder = copied()
        flip(folder / name, 40)
        with pytest.raises(InputError, match=name):
            read(folder, skip_damaged=True)
