from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest

from concerto_tf.errors import InputError
from concerto_tf.records import Records, Vocabulary, convert
from concerto_tf.records.conversion import workers

OPTIONS = {"shards": 3, "chunk_cells": 40, "source_key": "donor", "label_keys": ["type"]}


def test_only_finished_files_are_left(content, file: Path, tmp_path: Path) -> None:
    records = convert(file, tmp_path / "out" / "records", **OPTIONS)
    assert sorted(content(records.path)) == [
        "manifest.json",
        *(f"shard-0000{i}-of-00003.tfrecord" for i in range(3)),
        "vocabulary.tsv",
    ]
    assert records.manifest.inputs == ({"name": "cells.h5ad", "n_cells": 300},)
    assert records.sources == ["old", "young"]


def test_same_bytes_whatever_reads_them(content, file: Path, tmp_path: Path) -> None:
    expected = content(convert(file, tmp_path / "one", **OPTIONS).path)
    assert content(convert(str(file), tmp_path / "again", **OPTIONS).path) == expected
    assert content(convert([file], tmp_path / "three", workers=3, **OPTIONS).path) == expected
    memory = content(convert(anndata.read_h5ad(file), tmp_path / "memory", **OPTIONS).path)
    for name in expected:
        if name != "manifest.json":
            assert memory[name] == expected[name]
    other = content(convert(file, tmp_path / "other", seed=1, **OPTIONS).path)
    assert other["shard-00000-of-00003.tfrecord"] != expected["shard-00000-of-00003.tfrecord"]


def test_progress_counts_cells(make_cells, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    cells = make_cells(100)
    counts = cells.X.toarray()
    counts[7] = 0
    cells.X = counts
    convert(
        cells,
        tmp_path / "r",
        chunk_cells=30,
        shards=2,
        drop_empty=True,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert {total for _, total in calls} == {100}
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == 100 and len(calls) > 4


@pytest.mark.parametrize("n_cells", [1, 2])
def test_the_smallest_input(make_cells, counts_of, tmp_path: Path, n_cells: int) -> None:
    cells = make_cells(n_cells, 1)
    records = convert(cells, tmp_path / "r")
    assert counts_of(records).tolist() == cells.X.toarray().tolist()
    assert records.gene_stats.variance.shape == (1,)


def test_empty_cells(make_cells, tmp_path: Path, caplog) -> None:
    cells = make_cells(50)
    before = cells.X.toarray()
    before[[3, 20, 30, 44]] = 0
    cells.X = before
    with pytest.raises(InputError, match=r"4 cells .*\(CELL3, CELL20, CELL30, ...\).*filter_cells"):
        convert(cells, tmp_path / "r", chunk_cells=16)
    # Of several inputs the one is named whose cells they are, by the names that they have there.
    for name, part in {"good": make_cells(40), "poor": cells}.items():
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    both = [tmp_path / "good.h5ad", tmp_path / "poor.h5ad"]
    with pytest.raises(InputError, match=r"^poor.h5ad: 4 cells .*\(CELL3, CELL20, CELL30, "):
        convert(both, tmp_path / "r", chunk_cells=16)
    assert not (tmp_path / "r").exists()
    with caplog.at_level(logging.INFO, "concerto_tf"):
        records = convert(cells, tmp_path / "r", chunk_cells=16, drop_empty=True)
    assert "4 cells without any count were left out" in caplog.text
    assert records.n_cells == 46
    # Rows stay positions in the input.
    assert records.obs()["row"].tolist() == [i for i in range(50) if i not in (3, 20, 30, 44)]
    assert records.manifest.report["cells_dropped"] == 4
    cells.X = np.zeros((50, 60), np.float32)
    with pytest.raises(InputError, match="no cell has any count"):
        convert(cells, tmp_path / "none", drop_empty=True)
    cells.write_h5ad(both[1])
    with pytest.raises(InputError, match="^poor.h5ad: no cell has any count; check .* layer"):
        convert(both, tmp_path / "none", chunk_cells=16)
    records = convert(both, tmp_path / "good", chunk_cells=16, drop_empty=True)
    assert records.n_cells == 40


def test_counts_beside_what_is_none_are_told_by_file(make_cells, tmp_path: Path) -> None:
    cells = make_cells(1000)
    cells.X = cells.X.toarray()
    for name, value in {"whole": 1.0, "halves": 0.5, "large": 2.0**33}.items():
        cells.X[300, 0] = value  # not among those that units are told by
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    for name in ("halves", "large"):
        # By their places in this file.
        with pytest.raises(InputError, match=rf"^{name}.h5ad: rna: .*cells 250 and 499 are whole"):
            convert(
                [tmp_path / "whole.h5ad", tmp_path / f"{name}.h5ad"],
                tmp_path / "r",
                chunk_cells=250,
            )


def test_a_given_vocabulary(make_cells, counts_of, tmp_path: Path) -> None:
    cells = make_cells(30)
    genes = tuple(f"AB{i}C" for i in reversed(range(30))) + ("NEW1", "NEW2")
    expected = np.zeros((30, 32))
    expected[:, :30] = cells.X.toarray()[:, 29::-1]
    reference = convert(cells, tmp_path / "v", like=Vocabulary(genes))
    assert reference.vocabulary.ids == genes
    for name, like in {
        "records": reference,
        "path": str(reference.path),
        "table": reference.path / "vocabulary.tsv",
    }.items():
        records = convert(cells, tmp_path / name, like=like)
        assert records.vocabulary.ids == genes
        assert np.array_equal(counts_of(records), expected)
    report = records.manifest.report
    assert [report["overlap"][0][key] for key in ("shared", "missing", "extra")] == [30, 2, 30]
    assert any("30 of 32 genes" in line for line in report["lines"])
    with pytest.raises(InputError, match="genes are among"):
        convert(cells, tmp_path / "x", like=Vocabulary(tuple(f"XY{i}Z" for i in range(60))))


def test_a_cell_without_any_gene_of_the_vocabulary_is_kept(
    make_cells, counts_of, tmp_path: Path
) -> None:
    cells = make_cells(30)
    counts = cells.X.toarray()
    counts[4, :50], counts[4, 50:] = 0, 1
    cells.X = counts
    records = convert(cells, tmp_path / "r", like=Vocabulary(tuple(f"AB{i}C" for i in range(50))))
    assert records.n_cells == 30 and not counts_of(records)[4].any()
    assert records.manifest.report["cells_blank"] == 1


def test_normalized_values_stay_as_they_are(make_cells, counts_of, tmp_path: Path) -> None:
    cells = make_cells(40)
    totals = cells.X.sum(1)
    cells.X = cells.X.multiply(1e4 / totals).log1p().tocsr()
    records = convert(cells, tmp_path / "r")
    assert records.units == "lognorm" and records.manifest.normalisation == {}
    assert np.array_equal(counts_of(records), cells.X.toarray())
    [line] = records.manifest.report["lines"]
    assert "log-normalized" in line and "name that layer" not in line


def test_normalized_values_say_where_counts_could_be(make_cells, tmp_path: Path) -> None:
    cells = make_cells(40)
    cells.layers["umis"] = cells.X.copy()  # "counts" would be taken by itself
    cells.X = cells.X.multiply(1e4 / cells.X.sum(1)).log1p().tocsr()
    [line] = convert(cells, tmp_path / "r").manifest.report["lines"]
    assert "one of umis, name that layer" in line
    assert not convert(cells, tmp_path / "counts", layer="umis").manifest.report["lines"]


def test_fractions_on_the_scale_of_counts_are_scaled_as_counts_are(
    make_cells, counts_of, tmp_path: Path
) -> None:
    counts = make_cells(40)
    tpm = counts.copy()
    tpm.X = tpm.X.multiply(1e6 / tpm.X.sum(1)).tocsr().astype(np.float32)
    expected, records = convert(counts, tmp_path / "counts"), convert(tpm, tmp_path / "tpm")
    assert (expected.units, records.units) == ("counts", "linear")
    assert records.manifest.normalisation == expected.manifest.normalisation != {}
    assert np.array_equal(counts_of(records), tpm.X.toarray())
    assert "log-normalized as counts are" in records.manifest.report["lines"][0]
    for name in ("mean", "variance"):
        ours, theirs = getattr(records.gene_stats, name), getattr(expected.gene_stats, name)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_counts_and_fractions_are_joined_as_fractions(
    make_cells, counts_of, tmp_path: Path
) -> None:
    counts, tpm = make_cells(20), make_cells(20, seed=1)
    tpm.X = tpm.X.multiply(1e6 / tpm.X.sum(1)).tocsr()
    for cells, name in ((counts, "a.h5ad"), (tpm, "b.h5ad")):
        cells.obs_names = [f"{name}{i}" for i in range(20)]
        cells.write_h5ad(tmp_path / name)
    records = convert([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], tmp_path / "r")
    assert records.units == "linear"
    np.testing.assert_allclose(counts_of(records)[:20], counts.X.toarray())
    np.testing.assert_allclose(counts_of(records)[20:], tpm.X.toarray(), rtol=1e-6)


def test_counts_beside_fractions_are_looked_at_by_themselves(make_cells, tmp_path: Path) -> None:
    counts, tpm = make_cells(2000), make_cells(20, seed=1, prefix="TPM")
    counts.X.data[counts.X.indptr[500]] = 0.5
    tpm.X = tpm.X.multiply(1e6 / tpm.X.sum(1)).tocsr()
    for cells, name in ((counts, "a.h5ad"), (tpm, "b.h5ad")):
        cells.write_h5ad(tmp_path / name)
    with pytest.raises(InputError, match="cells 500 and 599 are whole"):
        convert([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], tmp_path / "r", chunk_cells=100)


def test_a_fraction_that_the_sample_does_not_show(make_cells, tmp_path: Path) -> None:
    cells = make_cells(2000)
    cells.X.data[cells.X.indptr[500]] = 0.5
    with pytest.raises(InputError, match="cells 500 and 599 are whole"):
        convert(cells, tmp_path / "r", chunk_cells=100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source_key": "batch"}, "batch.*donor"),
        ({"label_keys": ["celltype"]}, "celltype.*type"),
        ({"shards": 0}, "shards is 0"),
        ({"shards": 51}, "51 shards for 50 cells"),
        ({"workers": 0}, "workers is 0"),
        ({"compression": "zip"}, "'zip' is unknown"),
        ({"modalities": {"rna": "obsm:x"}}, "cannot be the name"),
        ({"modalities": {"a/b": "obsm:x"}}, "cannot be the name"),
        ({"layer": "spliced"}, "spliced"),
        ({"like": "/nowhere"}, "no such folder"),
    ],
)
def test_what_does_not_fit_leaves_nothing(
    make_cells, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        convert(make_cells(50), tmp_path / "r", **options)
    assert not (tmp_path / "r").exists()


def test_missing_sources_duplicate_barcodes_and_mixed_units(make_cells, tmp_path: Path) -> None:
    cells = make_cells(50)
    cells.obs["donor"] = ["x", None] * 25
    with pytest.raises(InputError, match="missing for 25 of 50 cells"):
        convert(cells, tmp_path / "r", source_key="donor")
    half = make_cells(50)
    half.X = half.X.log1p()
    with pytest.raises(InputError, match="different units"):
        convert([make_cells(50), half], tmp_path / "r")
    cells.obs_names = ["same", *cells.obs_names[1:-1], "same"]
    with pytest.raises(InputError, match="same"):
        convert(cells, tmp_path / "r")
    with pytest.raises(InputError, match="no input"):
        convert([], tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_processes_are_started_where_they_pay(
    content, file: Path, tmp_path: Path, monkeypatch
) -> None:
    expected = content(convert(file, tmp_path / "one", **OPTIONS).path)
    for worth in (1_000, 100):
        started = set()
        monkeypatch.setattr(workers, "_WORTH_CELLS", worth)
        records = convert(
            file,
            tmp_path / str(worth),
            workers=None,
            **OPTIONS,
            progress=lambda *_, to=started: to.update(
                child.pid for child in multiprocessing.active_children()
            ),
        )
        assert content(records.path) == expected
        assert bool(started) == (worth == 100 and workers.processors() > 1)
        assert len(started) <= workers.processors()  # the same ones in both passes


def test_needs_neither_tensorflow_nor_anndata(file: Path, tmp_path: Path) -> None:
    # To import them takes longer than to convert 50,000 cells, in each process.
    code = f"""
import sys
from concerto_tf.records import convert
convert({str(file)!r}, {str(tmp_path / "out")!r}, **{OPTIONS!r})
heavy = {{"tensorflow", "keras", "anndata", "scanpy", "matplotlib"}} & set(sys.modules)
raise SystemExit(", ".join(heavy) or 0)
"""
    root = Path(__file__).parents[3]
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert ended.returncode == 0, ended.stderr


def test_moved_records_open(file: Path, tmp_path: Path) -> None:
    records = convert(file, tmp_path / "here", **OPTIONS)
    shutil.move(records.path, tmp_path / "there")
    assert Records(tmp_path / "there").verify() == []
