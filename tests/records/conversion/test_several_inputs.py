"""Conversions of inputs that differ in genes, sources, labels and modalities."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from concerto_tf.errors import InputError
from concerto_tf.records import convert


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


def test_several_inputs_over_the_union_of_genes(make_cells, counts_of, tmp_path: Path) -> None:
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


# --- modalities and genes that are not everywhere -------------------------------------------


def with_protein(cells: anndata.AnnData, names: str = "ABCD") -> anndata.AnnData:
    counts = np.random.default_rng(1).poisson(9, (cells.n_obs, len(names))) + 1
    cells.obsm["protein"] = pd.DataFrame(counts, index=cells.obs_names, columns=list(names))
    return cells


PLACE = {"protein": "obsm:protein"}


def test_some_inputs_may_lack_a_modality(make_cells, content, tmp_path: Path) -> None:
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
