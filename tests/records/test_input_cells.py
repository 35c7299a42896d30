"""Cells straight from an input are those that come by way of records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from concerto_tf.errors import InputError
from concerto_tf.records import CellSet, Records, Vocabulary, convert, open_input
from concerto_tf.records.conversion.joining import join
from concerto_tf.records.genes.orthologs import read_orthologs
from concerto_tf.records.input_cells import InputCells

KEYS = ["type", "donor"]


@contextmanager
def directly(
    source: Any,
    like: dict[str, Vocabulary],
    *,
    layer: str | None = None,
    modalities: dict[str, str] | None = None,
    source_key: str | None = None,
    label_keys: list[str] | tuple[()] = (),
    orthologs: Path | None = None,
    **options: Any,
) -> Iterator[InputCells]:
    with open_input(source, layer=layer, modalities=modalities) as opened:
        joined = join(
            [opened],
            source_key=source_key,
            label_keys=label_keys,
            like=like,
            orthologs=orthologs and read_orthologs(orthologs),
        )
        yield InputCells(joined, **options)


def assert_same_facts(cells: CellSet, records: Records) -> None:
    for name in ("n_cells", "sources", "labels", "report"):
        assert getattr(cells, name) == getattr(records, name), name
    assert list(cells.modalities) == list(records.modalities)
    for name, info in records.modalities.items():
        found = cells.modalities[name]
        for field in ("n_genes", "gene_dtype", "value_dtype", "max_nonzeros", "units"):
            assert getattr(found, field) == getattr(info, field), (name, field)
        assert cells.vocabulary_of(name).ids == records.vocabulary_of(name).ids
        np.testing.assert_array_equal(cells.measured(name), records.measured(name))
    for (name, ours), theirs in zip(cells.obs().items(), records.obs().values(), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def assert_same_minibatches(found: CellSet, records: Records, **options: Any) -> None:
    ours, theirs = list(found.dataset(16, **options)), list(records.dataset(16, **options))
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert set(one) == set(other)
        for key, x in other.items():
            assert one[key].dtype == x.dtype and one[key].shape == x.shape, key
            if x.dtype.is_floating:
                np.testing.assert_allclose(one[key], x, rtol=1e-6, err_msg=key)
            else:
                np.testing.assert_array_equal(one[key], x, err_msg=key)


def same(source: Any, like: dict[str, Vocabulary], tmp_path: Path, **options: Any) -> None:
    """Compares all that either way tells of cells."""
    records = convert(source, tmp_path / "records", like=like, **options)
    genes = np.arange(0, len(like["rna"]), 3)
    with directly(source, like, **options) as cells:
        assert cells.in_memory
        assert_same_facts(cells, records)
        assert_same_minibatches(cells, records, cells=True, labels=list(records.labels))
        assert_same_minibatches(cells, records, packed=True, genes=genes, sources=["young", "x"])
        assert_same_minibatches(cells, records, genes=genes, modalities=["rna"])
    with directly(source, like, **options, chunk_cells=30, held_bytes=0) as cells:
        assert not cells.in_memory
        assert_same_facts(cells, records)
        asked = {"cells": True, "labels": list(records.labels)}
        ours, theirs = by_row(cells.dataset(16, **asked)), by_row(records.dataset(16, **asked))
        assert set(ours) == set(theirs)
        for row, held in theirs.items():
            for key, x in held.items():
                if key.endswith("total"):
                    np.testing.assert_allclose(ours[row][key], x, rtol=1e-5)
                else:
                    assert ours[row][key] == x, key


def by_row(batches: Any) -> dict[int, dict[str, Any]]:
    """What minibatches hold of each cell, whatever their widths."""
    found = {}
    for batch in batches:
        for i in np.flatnonzero(batch["row"].numpy() >= 0):
            cell: dict[str, Any] = {}
            for key, x in batch.items():
                if key.endswith("genes"):
                    values = batch[key.removesuffix("genes") + "values"][i].numpy()
                    there = values > 0
                    cell[key] = dict(zip(x[i].numpy()[there], values[there], strict=True))
                elif not key.endswith("values"):
                    cell[key] = x[i].numpy()
            found[int(batch["row"][i])] = cell
    return found


def stored(cells: anndata.AnnData, how: str, tmp_path: Path) -> Any:
    path = tmp_path / f"cells.{how.split()[0]}"
    if how == "AnnData":
        return cells
    if how == "view":
        return cells[::-1]
    if how == "zarr":
        cells.write_zarr(path)
    elif how == "mtx":
        path.mkdir()
        scipy.io.mmwrite(str(path / "matrix.mtx"), sp.coo_matrix(cells.X.T.astype(int)))
        for name, lines in (("barcodes", cells.obs_names), ("genes", cells.var_names)):
            (path / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    elif how == "h5":
        with h5py.File(path, "w") as file:
            group = file.create_group("matrix")
            x = sp.csr_matrix(cells.X)
            for name in ("data", "indices", "indptr"):
                group[name] = getattr(x, name).astype("i4")
            group["shape"] = np.array(x.shape[::-1], "i4")
            group["barcodes"] = np.array(cells.obs_names, "S18")
            for name in ("id", "name"):
                group[f"features/{name}"] = np.array(cells.var_names, "S20")
            group["features/feature_type"] = np.array(["Gene Expression"] * x.shape[1], "S20")
            group["features/genome"] = np.array(["GRCh38"] * x.shape[1], "S10")
    else:
        if how == "h5ad by gene":
            cells.X = sp.csc_matrix(cells.X)
        if how == "h5ad dense":
            cells.X = cells.X.toarray()
        cells.write_h5ad(path)
    return path


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
@pytest.mark.parametrize(
    "how", ["AnnData", "view", "h5ad", "h5ad by gene", "h5ad dense", "zarr", "mtx", "h5"]
)
def test_every_format(how: str, make_cells: Callable, tmp_path: Path) -> None:
    cells = make_cells(100)
    named = {"source_key": "donor", "label_keys": KEYS} if how not in ("mtx", "h5") else {}
    like = {"rna": Vocabulary(tuple(cells.var_names))}
    same(stored(cells, how, tmp_path), like, tmp_path, **named)


def with_protein(cells: anndata.AnnData) -> anndata.AnnData:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(rng.poisson(3.0, (cells.n_obs, 5)), cells.obs_names, list("vwxyz"))
    frame.iloc[:7] = 0  # lack it
    cells.obsm["protein"] = frame
    return cells


def test_several_modalities(make_cells: Callable, tmp_path: Path) -> None:
    cells = with_protein(make_cells(100))
    like = {"rna": Vocabulary(tuple(cells.var_names)), "protein": Vocabulary(tuple("zyxwvu"))}
    places = {"protein": "obsm:protein"}
    same(cells, like, tmp_path, modalities=places)
    with directly(cells, like, modalities=places) as found:
        assert not found.measured("protein")[-1]
        left = found.without(["protein"])
        assert list(left.modalities) == ["rna"] and "protein" in found.modalities
        assert "protein/genes" not in next(left.dataset(4))


def test_missing_and_further_genes_in_another_order(make_cells: Callable, tmp_path: Path) -> None:
    cells = make_cells(100)
    rng = np.random.default_rng(0)
    names = [*rng.permutation(cells.var_names)[10:], *(f"other{i}" for i in range(30))]
    same(cells, {"rna": Vocabulary(tuple(rng.permutation(names)))}, tmp_path)


def test_orthologs(make_cells: Callable, tmp_path: Path) -> None:
    cells = make_cells(100)
    pairs = [f"{name},Mouse{name}" for name in cells.var_names[5:]]
    # Two genes of one ortholog, and one gene of two.
    pairs += [f"{cells.var_names[0]},Mouse{cells.var_names[6]}", f"{cells.var_names[7]},MouseX"]
    table = tmp_path / "orthologs.csv"
    table.write_text("\n".join(["human,mouse", *pairs]) + "\n")
    like = {"rna": Vocabulary((*(f"Mouse{name}" for name in cells.var_names), "MouseX"))}
    same(cells, like, tmp_path, orthologs=table)


@pytest.mark.parametrize("unit", ["lognorm", "linear", "large"])
def test_other_units(unit: str, make_cells: Callable, tmp_path: Path) -> None:
    cells = make_cells(100)
    totals = np.asarray(cells.X.sum(1))
    scaled = cells.X.multiply(1e4 / totals).tocsr()
    cells.X = {"lognorm": scaled.log1p(), "linear": scaled, "large": cells.X * 2.0**20}[unit]
    same(cells, {"rna": Vocabulary(tuple(cells.var_names))}, tmp_path)


def test_empty_cells_may_be_left_out(make_cells: Callable, tmp_path: Path) -> None:
    cells = make_cells(100)
    counts = cells.X.toarray()
    counts[[0, 3, 50, 99]] = 0
    counts[5, :40], counts[5, 41] = 0, 1  # has no gene that is kept
    cells.X = sp.csr_matrix(counts)
    like = {"rna": Vocabulary(tuple(cells.var_names[:40]))}
    options = {"drop_empty": True, "source_key": "donor", "label_keys": KEYS}
    same(cells, like, tmp_path, **options)
    with directly(cells, like, **options) as found:
        assert found.n_cells == 96 and "4 cells without any count" in str(found.report["lines"])


def spoilt(cells: anndata.AnnData, how: str) -> tuple[anndata.AnnData, dict[str, Any]]:
    options: dict[str, Any] = {}
    if how == "empty":
        cells.X[[3, 70]] = 0
    elif how == "all empty":
        cells.X[:] = 0
        options["drop_empty"] = True
    elif how == "fractions":  # in cells that are not looked at to tell the units
        cells = cells[np.arange(1200) % 100].copy()
        cells.X[300, 3] = 1.5
        cells.obs_names = [f"c{i}" for i in range(1200)]
    elif how == "negative":
        cells.X[90, 3] = -1
    elif how == "empty modality":
        cells.obsm["protein"] = pd.DataFrame(np.zeros((100, 2)), cells.obs_names, ["a", "b"])
        options["modalities"] = {"protein": "obsm:protein"}
    elif how == "no label":
        options["label_keys"] = ["celltype"]
    elif how == "no source":
        cells.obs["donor"] = cells.obs["donor"].where(np.arange(100) > 3)
        options["source_key"] = "donor"
    elif how == "other genes":
        cells.var_names = [f"XY{i}" for i in range(cells.n_vars)]
    elif how == "same barcodes":
        cells.obs_names = ["a"] * 100
    return cells, options


@pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning")
@pytest.mark.parametrize(
    "how",
    [
        "empty",
        "all empty",
        "fractions",
        "negative",
        "empty modality",
        "no label",
        "no source",
        "other genes",
        "same barcodes",
    ],
)
def test_what_is_refused_is_refused_with_the_same_words(
    how: str, make_cells: Callable, tmp_path: Path
) -> None:
    cells = make_cells(100)
    cells.X = cells.X.toarray()
    like = {"rna": Vocabulary(tuple(cells.var_names))}
    cells, options = spoilt(cells.copy(), how)
    with pytest.raises(InputError) as theirs:
        convert(cells, tmp_path / "r", like=like, **options, chunk_cells=60)
    for held_bytes in (0, 2**20):
        with (
            pytest.raises(InputError) as ours,
            directly(cells, like, **options, chunk_cells=60, held_bytes=held_bytes),
        ):
            pass
        assert str(ours.value) == str(theirs.value)


def test_a_label_that_is_not_kept(make_cells: Callable) -> None:
    cells = make_cells(10)
    like = {"rna": Vocabulary(tuple(cells.var_names))}
    with directly(cells, like, label_keys=["type"]) as found:
        with pytest.raises(InputError, match="no label 'donor'.*type"):
            found.dataset(4, labels=["donor"])
        with pytest.raises(InputError, match="batch size is 0"):
            found.dataset(0)
        with pytest.raises(InputError, match="from 0 to 59"):
            found.dataset(2, genes=np.array([60]))


def test_damage_while_reading_names_the_file(make_cells: Callable, tmp_path: Path) -> None:
    cells = make_cells(100)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    like = {"rna": Vocabulary(tuple(cells.var_names))}
    with directly(tmp_path / "cells.h5ad", like, chunk_cells=30, held_bytes=0) as found:
        batches = found.dataset(16)
        next(batches)
        found._input.close()  # as when a disk is lost
        with pytest.raises(InputError, match="cells.h5ad: X, cells"):
            list(batches)


def test_dense_and_sparse_stretches_have_one_shape(make_cells: Callable) -> None:
    rng = np.random.default_rng(0)
    share = np.where(np.arange(256) < 192, 0.02, 0.5)[:, np.newaxis]  # in the order of the file
    counts = (rng.random((256, 600)) < share).astype("f4")
    counts[:, 0] = 1
    cells = anndata.AnnData(sp.csr_matrix(counts))
    like = {"rna": Vocabulary(tuple(cells.var_names))}
    with directly(cells, like, chunk_cells=64, held_bytes=0) as found:
        assert len({batch["genes"].shape for batch in found.dataset(64, packed=True)}) == 1


def test_memory_is_bounded_by_the_chunk(tmp_path: Path) -> None:
    """Values of 40 MB are read in chunks of 1 MB; NumPy tells the tracer what it takes."""
    import tracemalloc

    n, each = 20_000, 250
    rng = np.random.default_rng(0)
    genes = np.sort(rng.integers(0, 4, (n, each)) + 4 * np.arange(each), axis=1)
    x = sp.csr_matrix((rng.integers(1, 9, n * each), genes.ravel(), np.arange(n + 1) * each))
    anndata.AnnData(x.astype("f4")).write_h5ad(tmp_path / "cells.h5ad")
    like = {"rna": Vocabulary(tuple(map(str, range(x.shape[1]))))}
    seen = 0
    tracemalloc.start()
    with directly(tmp_path / "cells.h5ad", like, chunk_cells=500, held_bytes=2**21) as found:
        assert not found.in_memory
        for batch in found.dataset(256, packed=True):
            seen += int((batch["row"].numpy() >= 0).sum())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == n and peak < 16e6
