"""`.h5ad` as R's writers leave it: SeuratDisk, zellkonverter, anndataR and MuData."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from concerto_tf.errors import InputError
from concerto_tf.records import convert
from concerto_tf.records.inputs.opening import open_input

N_CELLS, N_GENES = 9, 6
COUNTS = np.random.default_rng(0).poisson(1.2, (N_CELLS, N_GENES)).astype(np.float64)
COUNTS[:, 0] += 1
TEXT = h5py.string_dtype()


def sparse(group: h5py.Group, matrix: Any, attrs: dict[str, Any], ints: str = "i4") -> None:
    group["data"] = matrix.data
    group["indices"], group["indptr"] = matrix.indices.astype(ints), matrix.indptr.astype(ints)
    group.attrs.update(attrs)


def frame(file: h5py.File, place: str, names: list[str], index: str = "_index") -> h5py.Group:
    group = file.create_group(place)
    group.create_dataset(index, data=np.array(names, object), dtype=TEXT)
    return group


def seurat_disk(path: Path) -> None:
    """A Seurat object with counts, and log-normalized data as X; no metadata of the genes."""
    with h5py.File(path, "w") as file:
        attrs = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
        logs = sp.csr_matrix(np.log1p(1e4 * COUNTS / COUNTS.sum(axis=1, keepdims=True)))
        shape = {"shape": np.array([N_CELLS, N_GENES])}
        sparse(file.create_group("X"), logs, {**attrs, **shape})
        sparse(file.create_group("raw/X"), sp.csr_matrix(COUNTS), {**attrs, **shape})
        for place in ("var", "raw/var"):
            group = frame(file, place, [f"AB{i}C" for i in range(N_GENES)])
            group.attrs["_index"] = "_index"
        obs = frame(file, "obs", [f"cell{i}" for i in range(N_CELLS)])
        obs["cell_type"] = np.array([0, 1, -(2**31)] * 3, np.int32)
        obs.create_dataset("__categories/cell_type", data=np.array(["B", "T"], object), dtype=TEXT)
        obs["nCount_RNA"] = COUNTS.sum(axis=1)
        obs.attrs["_index"] = "_index"
        obs.attrs["column-order"] = np.array(["cell_type", "nCount_RNA"], "S10")
        obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.1.0"})
        file["obsm/X_umap"] = np.zeros((N_CELLS, 2))


def test_seurat_disk(tmp_path: Path) -> None:
    seurat_disk(tmp_path / "in.h5ad")
    with open_input(tmp_path / "in.h5ad") as cells:
        assert (cells.layer, cells.n_cells) == ("raw", N_CELLS)
        np.testing.assert_array_equal(cells.chunk(0, N_CELLS)["rna"].toarray(), COUNTS)
        assert cells.columns == ["cell_type", "nCount_RNA"]
        codes, names = cells.column("cell_type")
        assert (codes.tolist(), names) == ([0, 1, -1] * 3, ["B", "T"])
    records = convert(tmp_path / "in.h5ad", tmp_path / "r", label_keys=["cell_type"])
    assert records.units == "counts" and records.labels == {"cell_type": ["B", "T"]}


def native(path: Path, form: str, said: str) -> None:
    """A SingleCellExperiment: numbers of R's types, X in whichever form, row names 1, 2, ..."""
    with h5py.File(path, "w", userblock_size=512) as file:
        shape = np.array([N_CELLS, N_GENES], float)
        if form == "dense":
            file["X"] = COUNTS
        else:
            matrix = sp.csr_matrix(COUNTS) if form == "csr" else sp.csc_matrix(COUNTS)
            attrs: dict[str, Any] = {
                "text": {"encoding-type": f"{form}_matrix", "shape": shape},
                "bytes": {"encoding-type": np.array([f"{form}_matrix".encode()]), "shape": shape},
                "h5sparse": {"h5sparse_format": form.encode(), "h5sparse_shape": shape},
            }[said]
            sparse(file.create_group("X"), matrix, attrs, "i8")
        var = frame(file, "var", [f"AB{i}C" for i in range(N_GENES)], "index")
        var.attrs["column-order"] = np.zeros(0)
        obs = frame(file, "obs", [str(i + 1) for i in range(N_CELLS)], "index")
        obs.attrs["column-order"] = np.array(["day", "sex", "age", "kept"], object)
        obs["day"] = np.arange(N_CELLS, dtype=float).reshape(-1, 1) // 3
        obs["day"].attrs["encoding-type"] = "array"
        sex = obs.create_group("sex")
        sex.attrs.update({"encoding-type": np.array([b"categorical"]), "ordered": np.array([0])})
        sex["codes"] = np.array([1, 0, -1] * 3, np.int32)
        sex.create_dataset("categories", data=np.array(["f", "m"], object), dtype=TEXT)
        for key, kind in (("age", "nullable-integer"), ("kept", "nullable-boolean")):
            group = obs.create_group(key)
            group.attrs["encoding-type"] = kind
            group["values"] = np.array([1, 0, 1] * 3, np.int32)
            group["mask"] = np.array([0, 0, 1] * 3, np.int8)


@pytest.mark.parametrize(
    ("form", "said"),
    [("dense", "")] + [(f, s) for f in ("csr", "csc") for s in ("text", "bytes", "h5sparse")],
)
def test_what_r_writes_by_itself(tmp_path: Path, form: str, said: str) -> None:
    native(tmp_path / "in.h5ad", form, said)
    with open_input(tmp_path / "in.h5ad") as cells:
        np.testing.assert_array_equal(cells.chunk(0, N_CELLS)["rna"].toarray(), COUNTS)
        assert cells.barcodes(0, 2) == ["1", "2"] and cells.genes.ids[0] == "AB0C"
        assert cells.columns == ["day", "sex", "age", "kept"]
        assert cells.column("day")[1] == ["0", "1", "2"]
        assert cells.column("sex")[0].tolist() == [1, 0, -1] * 3
        assert cells.column("age")[0].tolist() == [1, 0, -1] * 3
        assert cells.column("kept")[1] == ["False", "True"]
        assert cells.column("kept")[0].tolist() == [1, 0, -1] * 3


@pytest.mark.parametrize("name", ["counts", "logcounts"])
def test_no_x_but_layers(tmp_path: Path, name: str) -> None:
    """As anndataR writes an object whose assays all are layers."""
    native(tmp_path / "in.h5ad", "csr", "text")
    with h5py.File(tmp_path / "in.h5ad", "r+") as file:
        file.create_group("layers")
        file.move("X", f"layers/{name}")
    if name == "counts":
        with open_input(tmp_path / "in.h5ad") as cells:
            assert cells.layer == "counts"
            np.testing.assert_array_equal(cells.chunk(0, N_CELLS)["rna"].toarray(), COUNTS)
    else:
        with pytest.raises(InputError, match="in.h5ad: there is no X; choose a layer: logcounts"):
            open_input(tmp_path / "in.h5ad")


def test_scaled_data_whose_counts_were_not_written(tmp_path: Path) -> None:
    """SeuratDisk writes scale.data as X and data as raw.X where an assay was scaled."""
    seurat_disk(tmp_path / "in.h5ad")
    with h5py.File(tmp_path / "in.h5ad", "r+") as file:
        del file["raw/X"]
        file.move("X", "raw/X")
        file["X"] = COUNTS - COUNTS.mean(axis=0)
    with open_input(tmp_path / "in.h5ad") as cells:
        assert (cells.layer, cells.layers) == ("X", ["raw"])
        with pytest.raises(InputError, match="a negative value .* choose another layer: raw"):
            cells.chunk(0, N_CELLS)


def test_a_table_in_one_array_is_of_too_old_a_format(tmp_path: Path) -> None:
    native(tmp_path / "in.h5ad", "csr", "text")
    with h5py.File(tmp_path / "in.h5ad", "r+") as file:
        del file["obs"]
        file["obs"] = np.array([(b"a", 1)] * N_CELLS, [("index", "S1"), ("day", "i4")])
    with pytest.raises(InputError, match="obs is missing or of a format before anndata 0.7"):
        open_input(tmp_path / "in.h5ad")
