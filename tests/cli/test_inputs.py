"""Formats, several inputs at once, and the choice of genes, through the whole job."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import anndata
import numpy as np
import pytest
from anndata import AnnData
from scipy.io import mmwrite


def write_mtx(adata: AnnData, folder: Path) -> None:
    """As Cell Ranger 3 writes it."""
    folder.mkdir()
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        mmwrite(file, adata.X.T.astype(int))
    with gzip.open(folder / "barcodes.tsv.gz", "wt") as file:
        file.writelines(f"{name}\n" for name in adata.obs_names)
    with gzip.open(folder / "features.tsv.gz", "wt") as file:
        file.writelines(
            f"ENSG{i:011d}\t{name}\tGene Expression\n" for i, name in enumerate(adata.var_names)
        )


def normalized(adata: AnnData) -> np.ndarray:
    counts = adata.X.toarray()
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)


@pytest.fixture(scope="module")
def samples(make_cells, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same 60 cells in thirds, each in another format."""
    folder = tmp_path_factory.mktemp("samples")
    adata = make_cells()
    adata[:20].copy().write_h5ad(folder / "one.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # anndata's, on the version of the format
        adata[20:40].copy().write_zarr(folder / "two.zarr")
    write_mtx(adata[40:].copy(), folder / "three")
    return {name: folder / name for name in ("one.h5ad", "two.zarr", "three")}


def test_several_inputs_of_several_formats(samples, make_cells, concerto, tmp_path: Path) -> None:
    out = tmp_path / "run"
    answer = concerto(
        "run", *samples.values(), "-o", out, "--genes", "hvg:20", "--epochs", 1, "--json"
    )
    assert answer.code == 0, answer
    assert answer.last["cells"] == 60 and answer.last["genes"] == 40
    assert {"asw_source", "kbet", "ilisi"} <= set(answer.last)
    assert "three: rna:" in answer.err  # says how genes were matched
    found = concerto("inspect", out / "records", "--json").last
    assert found["sources"] == {"one": 20, "two": 20, "three": 20}
    assert concerto("inspect", out / "model", "--json").last["genes_used"] == 20
    given, result = make_cells(), anndata.read_h5ad(out / "result.h5ad")
    assert list(result.obs_names) == list(given.obs_names)
    np.testing.assert_array_equal(result.X.toarray(), given.X.toarray())
    assert result.obsm["X_concerto"].shape[0] == 60


def test_each_format_is_embedded_alike(samples, make_cells, concerto, model, tmp_path) -> None:
    z = []
    for name, path in samples.items():
        out = tmp_path / f"{name}.h5ad"
        answer = concerto("embed", model, path, "-o", out, "--quiet")
        assert answer.code == 0, answer
        z.append(anndata.read_h5ad(out).obsm["X_concerto"])
    make_cells().write_h5ad(tmp_path / "all.h5ad")
    concerto("embed", model, tmp_path / "all.h5ad", "-o", tmp_path / "out.h5ad", "--quiet")
    whole = anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_concerto"]
    np.testing.assert_allclose(np.concatenate(z), whole, rtol=1e-4, atol=1e-4)


def test_layer_is_read_instead_of_x(make_cells, concerto, tmp_path: Path) -> None:
    adata = make_cells()
    adata.layers["counts"] = adata.X.copy()
    adata.X = normalized(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    convert = ["convert", tmp_path / "cells.h5ad", "-o"]
    for layer, units in (("X", "lognorm"), ("counts", "counts")):
        answer = concerto(*convert, tmp_path / layer, "--layer", layer, "--json")
        assert answer.last["units"] == units
    # Left to itself it looks for counts.
    assert concerto(*convert, tmp_path / "found", "--json").last["units"] == "counts"


def test_normalized_input_and_a_list_of_genes(make_cells, concerto, tmp_path: Path) -> None:
    """A list that matches nothing stops the run after conversion; mended, it continues."""
    path, out, genes = tmp_path / "normal.h5ad", tmp_path / "run", tmp_path / "genes.txt"
    adata = make_cells()
    adata.X = normalized(adata)
    labels = adata.obs["cell_type"].astype(object)
    labels.iloc[:7] = None
    adata.obs["some"] = labels
    adata.write_h5ad(path)
    genes.write_text("ACTB\nGAPDH\n")
    command = ["run", path, "-o", out, "--genes", genes, "--epochs", 1, "--label-key", "some"]
    concerto(*command, "--quiet").mendable(str(genes), "ACTB, GAPDH", "AB0C")
    assert not (out / "model").exists() and not (out / "result.h5ad").exists()
    converted = (out / "records" / "manifest.json").stat().st_mtime_ns

    genes.write_text("AB1C\nAB7C\n\nAB30C\nACTB\n")
    answer = concerto(*command, "--seed", 0)
    assert answer.code == 0, answer
    assert (out / "records" / "manifest.json").stat().st_mtime_ns == converted
    model = concerto("inspect", out / "model", "--json").last
    assert model["genes_used"] == 3 and model["units"] == "values"
    records = concerto("inspect", out / "records", "--json").last
    notes = " ".join(records["notes"])
    assert records["units"] == "lognorm" and "used unchanged" in notes
    assert "'some': 7 cells without a value" in notes
    result = anndata.read_h5ad(out / "result.h5ad")
    np.testing.assert_array_equal(result.X, adata.X)
    assert result.obs["some"].isna().sum() == 7
    assert "knn_accuracy" in answer.out
    assert "some: 7 cells without one are left out of the scores" in answer.err

    # The cells themselves may be mended too as long as no model was trained on them.
    genes.write_text("ACTB\n")
    command[3] = tmp_path / "again"
    concerto(*command, "--quiet").mendable("ACTB")
    adata[:50].copy().write_h5ad(path)
    command[-1] = "cell_type"
    concerto(*command, "--quiet").mendable("ACTB")
    found = concerto("inspect", tmp_path / "again", "--json").last
    assert found["cells"] == 50 and found["labels"] == {"cell_type": 3}
