from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from concerto_tf.errors import InputError
from concerto_tf.records import Records, Vocabulary, convert
from concerto_tf.records.conversion import passes as passes_module
from concerto_tf.records.conversion import workers


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def counts_of(records: Records) -> np.ndarray:
    """All cells in input order, dense."""
    counts = np.zeros((records.n_cells, records.n_genes))
    for batch in records.dataset(64):
        for row, genes, values in zip(
            batch["row"].numpy(), batch["genes"].numpy(), batch["values"].numpy(), strict=True
        ):
            if row >= 0:
                np.add.at(counts[row], genes, values)
    return counts


OPTIONS = {"shards": 3, "chunk_cells": 40, "source_key": "donor", "label_keys": ["type"]}


def test_only_finished_files_are_left(file: Path, tmp_path: Path) -> None:
    records = convert(file, tmp_path / "out" / "records", **OPTIONS)
    assert sorted(content(records.path)) == [
        "manifest.json",
        *(f"shard-0000{i}-of-00003.tfrecord" for i in range(3)),
        "vocabulary.tsv",
    ]
    assert records.manifest.inputs == ({"name": "cells.h5ad", "n_cells": 300},)
    assert records.sources == ["old", "young"]


def test_same_bytes_whatever_reads_them(file: Path, tmp_path: Path) -> None:
    expected = content(convert(file, tmp_path / "one", **OPTIONS).path)
    assert content(convert(str(file), tmp_path / "again", **OPTIONS).path) == expected
    assert content(convert([file], tmp_path / "three", workers=3, **OPTIONS).path) == expected
    memory = content(convert(anndata.read_h5ad(file), tmp_path / "memory", **OPTIONS).path)
    for name in expected:
        if name != "manifest.json":
            assert memory[name] == expected[name]
    other = content(convert(file, tmp_path / "other", seed=1, **OPTIONS).path)
    assert other["shard-00000-of-00003.tfrecord"] != expected["shard-00000-of-00003.tfrecord"]


class Interrupted(Exception):
    """Stands for whatever ends a process in the middle."""


@pytest.mark.parametrize(
    ("step", "after"),
    [("spool_chunk", 0), ("spool_chunk", 4), ("write_shard", 0), ("write_shard", 2)],
)
def test_continues_after_an_interruption(
    file: Path, tmp_path: Path, monkeypatch, step: str, after: int
) -> None:
    expected = content(convert(file, tmp_path / "whole", **OPTIONS).path)
    original: Callable = getattr(passes_module, step)
    calls = []

    def counting(*arguments):
        if len(calls) == after:
            raise Interrupted
        calls.append(arguments)
        return original(*arguments)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(passes_module, step, counting)
        with pytest.raises(Interrupted):
            convert(file, out, **OPTIONS)
    assert not (out / "manifest.json").exists()
    with pytest.raises(InputError, match="unfinished"):
        Records(out)

    redone = []
    with monkeypatch.context() as patch:
        patch.setattr(passes_module, step, lambda *a: (redone.append(a), original(*a))[1])
        records = convert(file, out, **OPTIONS)
    assert content(records.path) == expected
    total = {"spool_chunk": 8, "write_shard": 3}[step]
    assert len(redone) == total - after


def test_continues_after_being_killed(file: Path, tmp_path: Path) -> None:
    expected = content(convert(file, tmp_path / "whole", **OPTIONS).path)
    out = tmp_path / "out"
    code = f"""
import os, signal
from concerto_tf.records import convert
def stop(done, total):
    if done >= 200:
        os.kill(os.getpid(), signal.SIGKILL)
convert({str(file)!r}, {str(out)!r}, progress=stop, **{OPTIONS!r})
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3])
    assert ended.returncode == -signal.SIGKILL
    # What a process that is killed while it writes leaves behind.
    (out / ".tmp-1-shard-00001-of-00003.tfrecord").write_bytes(b"half")
    (out / "spool" / ".tmp-1-part-00001").write_bytes(b"half")
    assert not (out / "manifest.json").exists() and (out / "spool").exists()
    assert content(convert(file, out, **OPTIONS).path) == expected


def test_what_is_finished_is_not_done_again(file: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    convert(file, out, **OPTIONS)
    monkeypatch.setattr(passes_module, "spool_chunk", None)
    monkeypatch.setattr(passes_module, "write_shard", None)
    assert convert(file, out, **OPTIONS).n_cells == 300
    # Killed between the manifest and the removal of what is no longer needed.
    (out / "spool").mkdir()
    (out / "plan.json").touch()
    convert(file, out, **OPTIONS)
    assert not (out / "spool").exists() and not (out / "plan.json").exists()


@pytest.mark.parametrize("damage", ["flipped", "missing", "manifest", "vocabulary"])
def test_damaged_records_are_converted_again(
    file: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    expected = content(convert(file, out, **OPTIONS).path)
    shard = next(out.glob("shard-*"))
    match damage:
        case "flipped":
            shard.write_bytes(shard.read_bytes()[:-30] + bytes(30))
        case "missing":
            shard.unlink()
        case "manifest":
            path = out / "manifest.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"n_cells": 299}))
        case "vocabulary":
            (out / "vocabulary.tsv").write_text("id\n")
    assert content(convert(file, out, **OPTIONS).path) == expected
    assert "damaged, and converted again" in caplog.text


def test_damaged_records_are_only_read_past_if_they_are_of_the_same_input(
    file: Path, make_cells, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    convert(file, out, **OPTIONS)
    shard = next(out.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-30] + bytes(30))
    assert convert(file, out, skip_damaged=True, **OPTIONS).n_cells == 299
    make_cells(200).write_h5ad(file)
    with pytest.raises(InputError, match="holds records differing in inputs; .*overwrite=True"):
        convert(file, out, skip_damaged=True, **OPTIONS)
    assert convert(file, out, skip_damaged=True, overwrite=True, **OPTIONS).n_cells == 200


def test_finished_records_are_only_replaced_when_asked(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(file, out, **OPTIONS)
    before = content(out)
    with pytest.raises(InputError, match="holds records differing in seed"):
        convert(file, out, seed=5, **OPTIONS)
    assert content(out) == before
    os.utime(file, (1, 1))  # as good as another file
    with pytest.raises(InputError, match="holds records differing in inputs"):
        convert(file, out, **OPTIONS)
    convert(file, out, overwrite=True, source_key="donor")
    assert len(content(out)) == 3


def test_an_unfinished_conversion_of_something_else_starts_afresh(
    file: Path, tmp_path: Path
) -> None:
    expected = content(convert(file, tmp_path / "whole", **OPTIONS).path)
    out = tmp_path / "out"
    (out / "spool").mkdir(parents=True)
    (out / "spool" / "part-00000").write_bytes(b"of something else")
    (out / "shard-00009-of-00010.tfrecord").write_bytes(b"of something else")
    (out / "plan.json").write_text(json.dumps({"asked": {"seed": 7}}))
    assert content(convert(file, out, **OPTIONS).path) == expected


def test_foreign_files_are_left_alone(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not empty and holds no records"):
        convert(file, out, overwrite=True)
    assert content(out) == {"thesis.txt": b"years of work"}
    with pytest.raises(InputError, match="is a file"):
        convert(file, out / "thesis.txt")


def test_a_folder_that_cannot_be_written(file: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        convert(file, "/proc/records")


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
def test_the_smallest_input(make_cells, tmp_path: Path, n_cells: int) -> None:
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


def reference_coverage(inputs: list[anndata.AnnData], genes: list[str]) -> np.ndarray:
    """Share of all genes' RNA that each input's genes hold, one gene at a time."""
    tables = [
        pd.DataFrame(cells.X.toarray(), columns=cells.var_names).astype(float) for cells in inputs
    ]
    tables = [table.div(table.sum(axis=1), axis=0) for table in tables]
    shared = [gene for gene in genes if all(gene in table for table in tables)]
    beside = {}
    for gene in genes:
        having = [table for table in tables if gene in table]
        of_shared = sum(table[shared].to_numpy().sum() for table in having)
        beside[gene] = sum(table[gene].sum() for table in having) / of_shared
    whole = sum(beside.values())
    return np.array([sum(beside[gene] for gene in table) / whole for table in tables])


def test_totals_make_up_for_genes_that_a_source_was_not_measured_for(
    make_cells, tmp_path: Path
) -> None:
    whole = make_cells(4000, n_genes=200, prefix="A")
    inputs = [whole[:1500].copy(), whole[1500:3000, ::2].copy(), whole[3000:, :140].copy()]
    inputs = [part[np.flatnonzero(part.X.sum(axis=1))].copy() for part in inputs]
    records = convert(inputs, tmp_path / "r", chunk_cells=700)
    want = reference_coverage(inputs, list(whole.var_names))
    np.testing.assert_allclose(records.manifest.coverage, want, atol=1e-5)
    assert want[0] == pytest.approx(1) and 0.4 < want[1] < 0.6 and 0.6 < want[2] < 0.8
    totals = {source: [] for source in range(3)}
    for batch in records.dataset(100, sources=records.sources, pad_last=False, genes=np.arange(3)):
        for total, source in zip(batch["total"].numpy(), batch["source"].numpy(), strict=True):
            totals[source].append(total)
    np.testing.assert_allclose(
        np.sort(totals[1]), np.sort(inputs[1].X.sum(axis=1).A1) / want[1], rtol=1e-5
    )
    # Means of 1,000 and more cells, whose standard error is about 2%: 5 of them.
    means = [np.mean(totals[source]) for source in range(3)]
    np.testing.assert_allclose(means, means[0], rtol=0.1)
    assert "rna: 70 of 200 genes are in all inputs; a new model looks at these" in " ".join(
        records.manifest.report["lines"]
    )

    # A source of several inputs has their mean, and no input lacks anything where all are alike.
    for cells in inputs:
        cells.obs["donor"] = "one"
    [one] = convert(inputs, tmp_path / "one", source_key="donor").manifest.coverage
    mean = np.average(want, weights=[len(cells) for cells in inputs])
    assert one == pytest.approx(mean, abs=1e-5)
    alike = convert([inputs[0], make_cells(20, n_genes=200, prefix="B")], tmp_path / "alike")
    assert alike.manifest.coverage == ()

    # Statistics are on the scale of all genes, as the share that a query lacks is reckoned from.
    alone = convert(whole, tmp_path / "whole").gene_stats
    at = [records.vocabulary.positions[gene] for gene in whole.var_names]
    of_all = records.gene_stats.mean[at] / records.share_measured()[at]
    # 200 means of at least 1,500 cells each: their sum within 2%, each within 30%.
    np.testing.assert_allclose(of_all.sum(), alone.mean.sum(), rtol=0.02)
    np.testing.assert_allclose(of_all, alone.mean, rtol=0.3)


def test_cells_that_are_left_out_count_nothing(make_cells, tmp_path: Path) -> None:
    full, half = make_cells(60, n_genes=200), make_cells(60, n_genes=200, seed=1, prefix="H")
    half = half[:, :100].copy()
    half = half[np.flatnonzero(half.X.sum(axis=1))].copy()
    want = convert([full, half], tmp_path / "want", source_name="one", source_key="donor")
    empty = make_cells(500, n_genes=200, prefix="E")
    empty.X = empty.X * 0
    empty.X.eliminate_zeros()
    drops = anndata.concat([full, empty])
    found = convert([drops, half], tmp_path / "r", source_key="donor", drop_empty=True)
    assert found.manifest.coverage == want.manifest.coverage
    np.testing.assert_array_equal(found.share_measured(), want.share_measured())
    # An input of which nothing is kept takes no genes away from the others.
    found = convert([full, empty[:, :60].copy()], tmp_path / "none", drop_empty=True)
    assert (found.share_measured() == 1).all() and found.manifest.coverage == ()


def test_inputs_that_share_too_little_are_not_compared(make_cells, tmp_path: Path) -> None:
    cells = make_cells(90, n_genes=300)
    cells.X = cells.X.toarray()
    cells.X[:, 100:160] = 0  # what all inputs share is silent
    parts = [cells[:30, :160].copy(), cells[30:60, 100:].copy(), cells[60:, 100:200].copy()]
    records = convert(parts, tmp_path / "r", drop_empty=True)
    assert (records.share_measured() == 1).sum() == 60 and records.manifest.coverage == ()


def test_several_inputs_over_the_union_of_genes(make_cells, tmp_path: Path) -> None:
    first, second = make_cells(40, prefix="A"), make_cells(30, seed=1, prefix="B")
    second.var_names = [f"AB{i + 10}C" for i in reversed(range(60))]
    records = convert([first, second], tmp_path / "r")
    assert list(records.vocabulary.ids[:60]) == list(first.var_names)
    assert sorted(records.vocabulary.ids) == sorted({*first.var_names, *second.var_names})
    table = pd.DataFrame(counts_of(records), columns=records.vocabulary.ids)
    assert np.array_equal(table[first.var_names][:40], first.X.toarray())
    assert np.array_equal(table[second.var_names][40:], second.X.toarray())
    assert not table[[f"AB{i}C" for i in range(60, 70)]][:40].to_numpy().any()
    obs = records.obs()
    assert obs["cell"].tolist() == [*first.obs_names, *second.obs_names]
    assert len(records.sources) == 2 and records.manifest.cells_per_source == [40, 30]
    assert len(records.manifest.report["overlap"]) == 2


def test_sources_are_named_by_file_and_shared_barcodes_numbered(make_cells, tmp_path: Path) -> None:
    paths = []
    for name in ("ctrl", "stim"):
        paths.append(tmp_path / f"{name}.h5ad")
        make_cells(20, seed=len(name)).write_h5ad(paths[-1])
    records = convert(paths, tmp_path / "r", label_keys="type")
    assert records.sources == ["ctrl", "stim"]
    barcodes = records.obs()["cell"].tolist()
    assert barcodes[0] == "CELL0-1" and barcodes[20] == "CELL0-2"
    assert len(set(barcodes)) == 40
    assert "share barcodes" in " ".join(records.manifest.report["lines"])


def test_labels_of_several_inputs_are_merged_by_name(make_cells, tmp_path: Path) -> None:
    first, second = make_cells(20, prefix="A"), make_cells(20, prefix="B")
    first.obs["type"] = pd.Categorical(["T", "B"] * 10, categories=["T", "B"])
    second.obs["type"] = ["NK", None] * 10
    records = convert([first, second], tmp_path / "r", label_keys=["type"])
    assert records.labels == {"type": ["T", "B", "NK"]}
    assert records.obs()["label/type"].tolist() == ["T", "B"] * 10 + ["NK", None] * 10
    assert "label 'type': 10 cells without a value" in records.manifest.report["lines"]


def test_a_given_vocabulary(make_cells, tmp_path: Path) -> None:
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


def test_a_cell_without_any_gene_of_the_vocabulary_is_kept(make_cells, tmp_path: Path) -> None:
    cells = make_cells(30)
    counts = cells.X.toarray()
    counts[4, :50], counts[4, 50:] = 0, 1
    cells.X = counts
    records = convert(cells, tmp_path / "r", like=Vocabulary(tuple(f"AB{i}C" for i in range(50))))
    assert records.n_cells == 30 and not counts_of(records)[4].any()
    assert records.manifest.report["cells_blank"] == 1


def test_normalized_values_stay_as_they_are(make_cells, tmp_path: Path) -> None:
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
    cells.layers["counts"] = cells.X.copy()
    cells.X = cells.X.multiply(1e4 / cells.X.sum(1)).log1p().tocsr()
    [line] = convert(cells, tmp_path / "r").manifest.report["lines"]
    assert "one of counts, name that layer" in line
    assert not convert(cells, tmp_path / "counts", layer="counts").manifest.report["lines"]


def test_fractions_on_the_scale_of_counts_are_scaled_as_counts_are(
    make_cells, tmp_path: Path
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


def test_counts_and_fractions_are_joined_as_fractions(make_cells, tmp_path: Path) -> None:
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


def test_ctrl_c_ends_the_workers_and_can_be_resumed(file: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    out = tmp_path / "out"
    script.write_text(f"""
import os, signal
from concerto_tf.records import convert
def stop(done, total):
    if done >= 60:  # three of eight chunks
        os.kill(os.getpid(), signal.SIGINT)
try:  # without a guard against being run again by the processes that are started
    convert({str(file)!r}, {str(out)!r}, progress=stop, workers=2, **{OPTIONS!r})
except KeyboardInterrupt:
    raise SystemExit(130)
""")
    root = Path(__file__).parents[3]
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert ended.returncode == 130, ended.stderr
    assert "Traceback" not in ended.stderr
    assert time.monotonic() - started < 100
    assert not (out / "manifest.json").exists()
    assert len(list((out / "spool").glob("part-*"))) >= 3
    expected = content(convert(file, tmp_path / "whole", **OPTIONS).path)
    assert content(convert(file, out, **OPTIONS).path) == expected


def test_a_lost_process_loses_nothing_else(file: Path, tmp_path: Path) -> None:
    expected = content(convert(file, tmp_path / "whole", **OPTIONS).path)
    out = tmp_path / "out"

    def kill(done: int, total: int) -> None:
        multiprocessing.active_children()[0].kill()

    with pytest.raises(InputError, match="ended before its time.*continues"):
        convert(file, out, workers=2, progress=kill, **OPTIONS)
    assert list((out / "spool").glob("part-*"))
    assert content(convert(file, out, **OPTIONS).path) == expected


def test_unsuitable_cells_leave_nothing_whatever_the_processes_are_at(
    make_cells, tmp_path: Path
) -> None:
    """Found late, with hundreds of small parts for the processes to write meanwhile."""
    cells = make_cells(6_000)
    cells.X.data[cells.X.indptr[5_000]] = -1
    cells.write_h5ad(tmp_path / "cells.h5ad")
    for attempt in range(3):
        out = tmp_path / f"out-{attempt}"
        with pytest.raises(InputError, match="negative"):
            convert(tmp_path / "cells.h5ad", out, workers=2, chunk_cells=20)
        assert not out.exists()


def test_a_container_s_share_of_processors_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Path.read_text
    for share, number in (("100000 100000", 1), ("max 100000", len(os.sched_getaffinity(0)))):
        monkeypatch.setattr(
            Path,
            "read_text",
            lambda path, *a, s=share: s if path.name == "cpu.max" else known(path, *a),
        )
        assert workers.processors() == number


def test_processes_are_started_where_they_pay(file: Path, tmp_path: Path, monkeypatch) -> None:
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


# --- modalities and genes that are not everywhere -------------------------------------------


def with_protein(cells: anndata.AnnData, names: str = "ABCD") -> anndata.AnnData:
    counts = np.random.default_rng(1).poisson(9, (cells.n_obs, len(names))) + 1
    cells.obsm["protein"] = pd.DataFrame(counts, index=cells.obs_names, columns=list(names))
    return cells


PLACE = {"protein": "obsm:protein"}


def test_some_inputs_may_lack_a_modality(make_cells, tmp_path: Path) -> None:
    parts = [
        make_cells(20, prefix="X"),
        with_protein(make_cells(30, seed=1)),
        with_protein(make_cells(10, seed=2, prefix="Y"), "BCDE"),
    ]
    paths = [tmp_path / f"{i}.h5ad" for i in range(3)]
    for path, part in zip(paths, parts, strict=True):
        part.write_h5ad(path)
    for number, out in ((1, "one"), (2, "two")):
        records = convert(paths, tmp_path / out, modalities=PLACE, workers=number, chunk_cells=8)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert records.vocabulary_of("protein").ids == tuple("ABCDE") and records.verify() == []
    found = np.zeros((60, 5))
    for batch in records.dataset(60):
        for row, genes, values in zip(
            batch["row"].numpy(),
            batch["protein/genes"].numpy(),
            batch["protein/values"].numpy(),
            strict=True,
        ):
            np.add.at(found[row], genes, values)
    assert not found[:20].any()
    np.testing.assert_array_equal(found[20:50, :4], parts[1].obsm["protein"])
    np.testing.assert_array_equal(found[50:, 1:], parts[2].obsm["protein"])
    lines = records.manifest.report["lines"]
    assert "0.h5ad: has no protein; its cells lack it" in lines
    assert "20 cells have no value of protein: they lack it" in lines


def test_modality_that_no_cell_has_is_refused(make_cells, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="protein: none of the 2 inputs has obsm:protein"):
        convert([make_cells(5), make_cells(5)], tmp_path / "out", modalities=PLACE)
    with pytest.raises(InputError, match="modality protein: no 'protein' in obsm in AnnData|AnnD"):
        convert(make_cells(5), tmp_path / "out", modalities=PLACE)
    empty = with_protein(make_cells(5))
    empty.obsm["protein"] *= 0
    with pytest.raises(InputError, match="modality protein: no cell has any value of it"):
        convert(empty, tmp_path / "out", modalities=PLACE)
    assert not (tmp_path / "out").exists()


def test_what_was_not_measured_is_told_from_zero(make_cells, tmp_path: Path) -> None:
    like = convert(with_protein(make_cells(40)), tmp_path / "like", modalities=PLACE)
    assert like.measured().all() and like.measured("protein").all()
    cells = with_protein(make_cells(30, seed=1), "BD")[:, ::2].copy()
    cells.X = cells.X.multiply(np.arange(30) > 0).tocsr()  # the first is measured, and zero
    query = convert(cells, tmp_path / "query", like=like, modalities=PLACE)
    np.testing.assert_array_equal(query.measured(), np.arange(60) % 2 == 0)
    np.testing.assert_array_equal(query.measured("protein"), [False, True, False, True])
    # Of several inputs, a gene counts as measured if any has it.
    both = convert([cells, make_cells(5, seed=2, prefix="Z")], tmp_path / "both", like=like)
    assert both.measured().all()


def test_dataset_gives_the_modalities_asked_for(make_cells, tmp_path: Path) -> None:
    records = convert(with_protein(make_cells(20)), tmp_path / "out", modalities=PLACE)
    spec = {
        names: set(records.dataset(4, modalities=names).element_spec)
        for names in (None, ("rna",), ("protein",))
    }
    rna, protein = {"genes", "values", "total"}, {"protein/genes", "protein/values"}
    assert spec[None] >= rna | protein
    assert spec["rna",] >= rna and not spec["rna",] & protein
    assert spec["protein",] >= protein and not spec["protein",] & rna
    [whole], [alone] = records.dataset(20), records.dataset(20, modalities=["protein"])
    np.testing.assert_array_equal(whole["protein/values"], alone["protein/values"])
    with pytest.raises(InputError, match="no modality 'adt'.*there are: rna, protein"):
        records.vocabulary_of("adt")
