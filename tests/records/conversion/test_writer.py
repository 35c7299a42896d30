from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from concerto_tf.records.conversion.spool import key_bounds, open_part, random_keys, write_part
from concerto_tf.records.conversion.writer import (
    Chunk,
    ShardPlan,
    Target,
    gene_dtype,
    moments,
    smallest_dtype,
    spool_chunk,
    write_shard,
)
from concerto_tf.records.genes.overlap import match
from concerto_tf.records.genes.vocabulary import Vocabulary
from concerto_tf.records.tfrecord import write_tfrecord

GENES = Vocabulary(tuple(f"AB{i}C" for i in range(9)))


def counts(n_cells: int, seed: int = 0) -> sp.csr_matrix:
    return sp.csr_matrix(np.random.default_rng(seed).poisson(0.7, (n_cells, len(GENES))) * 1.0)


def chunk(matrix: sp.csr_matrix, first: int = 0) -> Chunk:
    rows = np.arange(first, first + matrix.shape[0])
    return Chunk({"rna": matrix}, rows, {"source": rows % 2}, [f"cell{row}é" for row in rows])


def read(path: Path, compression: str = "") -> list[tuple[int, int, str, bytes, bytes]]:
    cells = []
    for record in tf.data.TFRecordDataset(str(path), compression):
        feature = tf.train.Example.FromString(record.numpy()).features.feature
        cells.append(
            (
                feature["row"].int64_list.value[0],
                feature["source"].int64_list.value[0],
                feature["cell"].bytes_list.value[0].decode(),
                feature["genes"].bytes_list.value[0],
                feature["values"].bytes_list.value[0],
            )
        )
    return cells


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([], "u1"),
        ([0, 255], "u1"),
        ([255.0], "u1"),
        ([256], "u2"),
        ([65_535.0], "u2"),
        ([65_536], "u4"),
        ([2.0**32 - 1], "u4"),
        ([2.0**32], "f4"),
        ([0.5], "f4"),
        ([255.5], "f4"),
        ([1e-9], "f4"),
    ],
)
def test_smallest_dtype(values: list, dtype: str) -> None:
    values = np.array(values)
    found = smallest_dtype(values)
    assert found == np.dtype(dtype)
    if found.kind == "u":
        assert np.array_equal(values.astype(found).astype(values.dtype), values)


def test_gene_dtype() -> None:
    assert [gene_dtype(n).name for n in (1, 65_535, 65_536)] == ["uint16", "uint16", "uint32"]


def test_moments_are_those_of_scaled_counts() -> None:
    matrix = counts(50)
    dense = matrix.toarray()
    scaled = 1e4 * dense / np.maximum(dense.sum(1, keepdims=True), 1)
    expected = np.stack([(dense > 0).sum(0), scaled.sum(0), (scaled**2).sum(0)])
    np.testing.assert_allclose(moments(matrix, "counts"), expected, rtol=1e-12)
    logs = sp.csr_matrix(np.log1p(scaled))
    np.testing.assert_allclose(moments(logs, "lognorm"), expected, rtol=1e-9)
    raw = np.stack([(dense > 0).sum(0), dense.sum(0), (dense**2).sum(0)])
    np.testing.assert_allclose(moments(matrix, "values"), raw, rtol=1e-12)


def test_moments_leave_the_matrix_alone() -> None:
    matrix = counts(5)
    before = matrix.copy()
    moments(matrix, "counts")
    assert (matrix != before).nnz == 0


def test_keys_are_the_published_generator() -> None:
    # First numbers of SplitMix64 from the state 0.
    assert random_keys(0, np.arange(3)).tolist() == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]
    keys = random_keys(7, np.arange(10_000))
    assert len(np.unique(keys)) == 10_000
    assert not np.array_equal(keys, random_keys(8, np.arange(10_000)))
    # Independent of what else is asked for.
    assert random_keys(7, np.array([9_999]))[0] == keys[-1]


def test_keys_spread_evenly() -> None:
    n_cells, n_ranges = 20_000, 10
    found = np.bincount(
        np.searchsorted(key_bounds(n_ranges), random_keys(1, np.arange(n_cells)), side="right"),
        minlength=n_ranges,
    )
    # Chi-squared with 9 degrees of freedom: above 33.7 in one of 10,000 trials.
    expected = n_cells / n_ranges
    assert ((found - expected) ** 2 / expected).sum() < 33.7


def test_a_part_reads_back_any_slice(tmp_path: Path) -> None:
    arrays = {"a": np.arange(10, dtype="<u2"), "b": np.array([0.5, 1.5]), "c": np.zeros(0, "<i8")}
    write_part(tmp_path / "part", arrays, {"n": 3})
    part = open_part(tmp_path / "part")
    assert part.summary == {"n": 3}
    assert part.read("a", 3, 6).tolist() == [3, 4, 5]
    for name, array in arrays.items():
        found = part.read(name)
        assert found.dtype == array.dtype and np.array_equal(found, array)


@settings(max_examples=15, deadline=None)
@given(
    n_cells=st.integers(1, 40),
    n_chunk=st.integers(1, 15),
    n_blocks=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1, 200, 70_000, 0.25]),
    compression=st.sampled_from(["none", "gzip"]),
)
def test_both_passes_give_every_cell_back(
    tmp_path_factory,
    n_cells: int,
    n_chunk: int,
    n_blocks: int,
    seed: int,
    scale: float,
    compression: str,
) -> None:
    folder = tmp_path_factory.mktemp("passes")
    matrix = counts(n_cells, seed) * scale
    targets = {"rna": Target(match(GENES, GENES), "values")}
    parts = []
    for start in range(0, n_cells, n_chunk):
        path = folder / f"part-{start}"
        spool_chunk(path, chunk(matrix[start : start + n_chunk], start), targets, seed)
        parts.append(open_part(path))
    bounds = key_bounds(n_blocks)
    cuts = np.array(
        [[0, *np.searchsorted(p.read("key"), bounds), p.summary["n_cells"]] for p in parts]
    )
    dtype = smallest_dtype(matrix.data)
    plan = ShardPlan(folder / "shard", cuts, {"rna": dtype}, ["source"], 2, compression)
    info = write_shard(plan, parts)

    cells = read(folder / "shard", "GZIP" if compression == "gzip" else "")
    filled = np.flatnonzero(np.diff(matrix.indptr))
    keys = random_keys(seed, np.arange(n_cells))
    assert [cell[0] for cell in cells] == sorted(filled, key=lambda row: keys[row])
    for row, source, name, genes, values in cells:
        assert source == row % 2 and name == f"cell{row}é"
        assert np.frombuffer(genes, "<u2").tolist() == matrix[row].indices.tolist()
        assert np.frombuffer(values, dtype).tolist() == matrix[row].data.tolist()
    assert info.n_cells == len(filled)
    assert info.cells_per_source == ((filled % 2 == 0).sum(), (filled % 2 == 1).sum())
    assert info.bytes == (folder / "shard").stat().st_size
    assert sum(part.summary["n_empty"] for part in parts) == n_cells - len(filled)


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_files_are_those_of_tensorflow(tmp_path: Path, compression: str) -> None:
    messages = [b"", b"a", b"bb", bytes(3_000_000), b"c" * 400]
    with tf.io.TFRecordWriter(str(tmp_path / "theirs"), compression) as writer:
        for message in messages:
            writer.write(message)
    found = write_tfrecord(tmp_path / "ours", messages, compression.lower() or "none")
    raw = (tmp_path / "ours").read_bytes()
    assert found == (len(raw), hashlib.sha256(raw).hexdigest())
    theirs = (tmp_path / "theirs").read_bytes()
    if compression:
        raw, theirs = gzip.decompress(raw), gzip.decompress(theirs)
    assert raw == theirs


def test_values_of_parts_with_different_dtypes(tmp_path: Path) -> None:
    targets = {"rna": Target(match(GENES, GENES), "counts")}
    parts = []
    for number, value in enumerate((3, 300)):
        matrix = sp.csr_matrix((np.array([value]), ([0], [number])), (1, len(GENES)))
        spool_chunk(tmp_path / f"part{number}", chunk(matrix, number), targets, 0)
        parts.append(open_part(tmp_path / f"part{number}"))
    assert [part.summary["modalities"]["rna"]["value_dtype"] for part in parts] == ["|u1", "<u2"]
    plan = ShardPlan(
        tmp_path / "shard",
        np.array([[0, 1], [0, 1]]),
        {"rna": np.dtype("<u2")},
        ["source"],
        2,
        "none",
    )
    write_shard(plan, parts)
    found = {row: np.frombuffer(raw, "<u2").tolist() for row, *_, raw in read(tmp_path / "shard")}
    assert found == {0: [3], 1: [300]}


def test_more_than_65_535_genes(tmp_path: Path) -> None:
    many = Vocabulary(tuple(f"AB{i}C" for i in range(65_600)))
    matrix = sp.csr_matrix((np.array([1, 2]), ([0, 0], [3, 65_599])), (1, len(many)))
    spool_chunk(tmp_path / "part", chunk(matrix), {"rna": Target(match(many, many), "counts")}, 0)
    part = open_part(tmp_path / "part")
    assert part.read("rna/genes").dtype == np.uint32
    assert part.read("rna/genes").tolist() == [3, 65_599]
