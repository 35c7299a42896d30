from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from concerto_tf.errors import InputError
from concerto_tf.records.inputs.opening import open_input

N_CELLS, N_GENES = 23, 12
SAVE = ["memory", "view", "backed", "h5ad", "zarr2", "zarr3"]


class TestEveryStore:
    @pytest.mark.parametrize("how", SAVE)
    @pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, sp.csr_array, np.asarray])
    def test_values_barcodes_and_columns(
        self, make: Any, counts: Any, dense: Any, stored: Any, how: str, form: Any
    ) -> None:
        adata = make(form(counts()))
        with open_input(stored(adata, how)) as cells:
            assert (cells.n_cells, cells.genes.ids) == (N_CELLS, tuple(adata.var_names))
            np.testing.assert_array_equal(dense(cells), counts())
            assert cells.chunk(3, 9)["rna"].dtype == np.float32
            names = cells.barcodes(2, 5)
            assert [name.split("-")[1] for name in names] == ["ß2", "ß3", "ß4"]
            codes, categories = cells.column("kind")
            assert categories == ["B", "T"]
            assert codes.tolist() == np.resize([1, 0, -1], N_CELLS).tolist()
            assert cells.column("day")[1] == ["3", "10"]
            assert cells.columns == ["kind", "day"]
            cells.check_barcodes()

    @pytest.mark.parametrize("how", SAVE)
    def test_layers_and_raw(
        self, make: Any, counts: Any, dense: Any, stored: Any, how: str
    ) -> None:
        adata = make()
        adata.raw = make(sp.csr_matrix(counts(15, seed=1)))
        adata.layers["spliced"] = sp.csr_matrix(counts(seed=2))
        source = stored(adata, how)
        with open_input(source) as cells:
            assert cells.layers == ["spliced", "raw"]
        with open_input(source, layer="raw") as cells:
            assert len(cells.genes) == 15
            np.testing.assert_array_equal(dense(cells), counts(15, seed=1))
        with open_input(source, layer="spliced", modalities={"rest": "layer:spliced"}) as cells:
            np.testing.assert_array_equal(dense(cells), counts(seed=2))
            np.testing.assert_array_equal(dense(cells, "rest"), counts(seed=2))
        with pytest.raises(
            InputError, match="no layer 'splice'; did you mean 'spliced'. There are: spliced, raw"
        ):
            open_input(source, layer="splice")

    @pytest.mark.parametrize("how", SAVE)
    def test_protein_in_obsm(
        self, counts: Any, make: Any, dense: Any, stored: Any, how: str
    ) -> None:
        protein = counts(3, seed=4)
        adata = make()
        adata.obsm["frame"] = pd.DataFrame(protein, adata.obs_names, ["CD3", "CD4", "IgG"])
        adata.obsm["array"] = protein
        adata.obsm["sparse"] = sp.csr_matrix(protein)
        places = {key: f"obsm:{key}" for key in ("frame", "array", "sparse")}
        source = stored(adata, how)
        with open_input(source, modalities=places) as cells:
            assert cells.modalities["frame"].ids == ("CD3", "CD4", "IgG")
            assert cells.modalities["array"].ids == ("array_0", "array_1", "array_2")
            for key in places:
                np.testing.assert_array_equal(dense(cells, key), protein)
            np.testing.assert_array_equal(dense(cells), counts())
        with pytest.raises(
            InputError, match="modality adt: no 'fram' in obsm; did you mean 'frame'"
        ):
            open_input(source, modalities={"adt": "obsm:fram"})

    @pytest.mark.parametrize("how", ["memory", "h5ad", "zarr3"])
    def test_feature_types(self, make: Any, dense: Any, counts: Any, stored: Any, how: str) -> None:
        adata = make()
        adata.var["feature_types"] = ["Antibody Capture"] * 2 + ["Gene Expression"] * 10
        source = stored(adata, how)
        with open_input(source, modalities={"adt": "feature_types:Antibody Capture"}) as cells:
            assert cells.genes.ids == tuple(adata.var_names[2:])
            assert cells.modalities["adt"].ids == tuple(adata.var_names[:2])
            np.testing.assert_array_equal(dense(cells), counts()[:, 2:])
            np.testing.assert_array_equal(dense(cells, "adt"), counts()[:, :2])
        with pytest.raises(
            InputError, match="no feature type 'Peaks'; there are: Antibody Capture"
        ):
            open_input(source, modalities={"atac": "feature_types:Peaks"})

    @pytest.mark.parametrize("how", ["memory", "h5ad", "zarr2", "zarr3"])
    def test_the_other_names_of_genes(self, make: Any, stored: Any, how: str) -> None:
        accessions = [f"ENSG{i:011d}" for i in range(N_GENES)]
        adata = make()
        adata.var["gene_ids"] = accessions
        with open_input(stored(adata, how)) as cells:
            assert cells.genes.ensembl == tuple(accessions)
            assert cells.genes.symbols is None
        adata.var["feature_name"] = adata.var_names.to_list()
        adata.var_names = accessions
        with open_input(adata) as cells:
            assert cells.genes.ids == tuple(accessions)
            assert cells.genes.symbols == tuple(adata.var["feature_name"])

    @pytest.mark.parametrize("how", ["memory", "h5ad", "zarr3"])
    def test_a_copy_in_another_process_reads_the_same(
        self, dense: Any, counts: Any, make: Any, stored: Any, how: str, temporary: Path
    ) -> None:
        with open_input(stored(make(sp.csc_matrix(counts())), how)) as cells:
            with pickle.loads(pickle.dumps(cells)) as copy:
                np.testing.assert_array_equal(dense(copy), counts())
                assert copy.barcodes(0, 3) == cells.barcodes(0, 3)
            # The copy has not taken the sorted matrix away.
            np.testing.assert_array_equal(dense(cells), counts())
        assert list(temporary.iterdir()) == []


def test_scratch_is_kept_and_found_again(
    make: Any, counts: Any, dense: Any, tmp_path: Path
) -> None:
    path, scratch = tmp_path / "in.h5ad", tmp_path / "scratch"
    make(sp.csc_matrix(counts())).write_h5ad(path)
    with open_input(path, scratch=scratch):
        pass
    (copy,) = scratch.iterdir()
    before = (copy / "rows.json").stat().st_mtime_ns
    with open_input(path, scratch=scratch) as cells:
        np.testing.assert_array_equal(dense(cells), counts())
    assert (copy / "rows.json").stat().st_mtime_ns == before
    # Another file of the same name and size is another matrix.
    size = path.stat().st_size
    make(sp.csc_matrix(2 * counts())).write_h5ad(path)
    assert path.stat().st_size == size
    with open_input(path, scratch=scratch) as cells:
        np.testing.assert_array_equal(dense(cells), 2 * counts())


@pytest.mark.parametrize(
    ("dtype", "read_as"),
    [("bool", "uint8"), ("uint8", "uint8"), ("int64", "int64"), ("float64", "float64")],
)
def test_dtypes(counts: Any, make: Any, dense: Any, dtype: str, read_as: str) -> None:
    values = counts() > 0 if dtype == "bool" else counts().astype(dtype)
    with open_input(make(sp.csr_matrix(values))) as cells:
        assert cells.chunk(0, 5)["rna"].dtype == read_as
        np.testing.assert_array_equal(dense(cells), values.astype(read_as))


def test_unsorted_repeated_and_zero_entries_are_put_right(make: Any, dense: Any) -> None:
    x = sp.csr_matrix(
        (np.array([1, 0, 2, 3], np.float32), np.array([4, 2, 4, 1]), np.array([0, 3, 4])), (2, 5)
    )
    adata = make(x)
    with open_input(adata) as cells:
        assert dense(cells).tolist() == [[0, 0, 0, 0, 3], [0, 3, 0, 0, 0]]
    # What the user has in memory is left as it was.
    assert adata.X.nnz == 4


def test_a_chunk_may_be_changed_in_place(make: Any, dense: Any, counts: Any) -> None:
    adata = make()
    with open_input(adata) as cells:
        cells.chunk(0, N_CELLS)["rna"].data[:] = 77
        np.testing.assert_array_equal(dense(cells), counts())
    np.testing.assert_array_equal(adata.X.toarray(), counts())


def test_dense_rows_are_read_in_blocks(
    make: Any, counts: Any, dense: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("concerto_tf.records.inputs.rows._BLOCK_BYTES", 3 * N_GENES * 4)
    path = tmp_path / "in.h5ad"
    make(counts()).write_h5ad(path)
    with open_input(path) as cells:
        np.testing.assert_array_equal(dense(cells), counts())
        assert cells.chunk(4, 4)["rna"].shape == (0, N_GENES)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1.5, r"a negative value \(-1.5\) in {}, cell 'Zelle-ß17', gene 'G4X'; counts are needed"),
        (np.nan, "NaN in {}, cell 'Zelle-ß17', gene 'G4X'; set it to 0 or leave the cell out"),
        (np.inf, "an infinite value in {}, cell 'Zelle-ß17', gene 'G4X'; set it to 0"),
    ],
)
@pytest.mark.parametrize("layer", [None, "scaled"])
def test_unsuitable_values_name_cell_and_gene(
    counts: Any, make: Any, tmp_path: Path, value: float, message: str, layer: str | None
) -> None:
    bad = counts()
    bad[17, 4] = value
    adata = make()
    if layer is None:
        adata.X = sp.csr_matrix(bad)
        adata.layers["spliced"] = sp.csr_matrix(counts())
    else:
        adata.layers[layer] = sp.csr_matrix(bad)
    path = tmp_path / "in.h5ad"
    adata.write_h5ad(path)
    where = "X" if layer is None else f"layers/{layer}"
    with open_input(path, layer=layer) as cells:
        cells.chunk(0, 17)
        with pytest.raises(InputError, match="in.h5ad: " + message.format(where)) as error:
            cells.chunk(10, 20)
    if value == -1.5 and layer is None:
        assert str(error.value).endswith("; choose another layer: spliced")


def test_gaps_in_a_protein_frame_are_named(make: Any) -> None:
    adata = make()
    column = pd.array([1, None] + [2] * (N_CELLS - 2), dtype="Int64")
    adata.obsm["adt"] = pd.DataFrame({"CD3": column, "CD4": 1.0}, index=adata.obs_names)
    with open_input(adata, modalities={"adt": "obsm:adt"}) as cells:
        with pytest.raises(InputError, match="NaN in obsm/adt, cell 'Zelle-ß1', gene 'CD3'"):
            cells.chunk(0, 5)


def test_no_such_column(make: Any) -> None:
    with open_input(make()) as cells:
        with pytest.raises(InputError) as error:
            cells.column("kinds")
    assert str(error.value) == (
        "AnnData: no column 'kinds' in obs; did you mean 'kind'? There are: kind, day"
    )


def test_repeated_barcodes(make: Any) -> None:
    adata = make()
    adata.obs_names = ["one", *adata.obs_names[1:-1], "one"]
    with open_input(adata) as cells:
        with pytest.raises(
            InputError, match="AnnData: barcode 'one' names more than one cell; run"
        ):
            cells.check_barcodes()


@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
@pytest.mark.parametrize("how", ["memory", "h5ad"])
def test_repeated_genes(make: Any, stored: Any, how: str) -> None:
    adata = make()
    adata.var_names = ["A", "A", *adata.var_names[2:]]
    source = stored(adata, how)
    name = "AnnData" if how == "memory" else "in.h5ad"
    with pytest.raises(InputError, match=f"^{name}: duplicate gene names: 'A' .2x.; run adata.var"):
        open_input(source)


@pytest.mark.parametrize("how", ["memory", "h5ad"])
@pytest.mark.parametrize(
    ("shape", "message"), [((0, 4), "no cells in it"), ((4, 0), "no genes in X")]
)
def test_nothing_in_it(stored: Any, how: str, shape: tuple[int, int], message: str) -> None:
    adata = ad.AnnData(sp.csr_matrix(shape, dtype=np.float32))
    source = stored(adata, how)
    name = "AnnData" if how == "memory" else "in.h5ad"
    with pytest.raises(InputError, match=f"^{name}: {message}"):
        open_input(source)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
def test_one_cell_or_one_gene_is_read(make: Any, dense: Any, shape: tuple[int, int]) -> None:
    with open_input(make(sp.csr_matrix(np.ones(shape, np.float32)))) as cells:
        np.testing.assert_array_equal(dense(cells), np.ones(shape))


def test_a_matrix_of_text(make: Any, tmp_path: Path) -> None:
    adata = make()
    adata.obsm["words"] = pd.DataFrame({"w": ["a"] * N_CELLS}, index=adata.obs_names)
    with pytest.raises(InputError, match="AnnData: values of type object where numbers are due"):
        open_input(adata, modalities={"words": "obsm:words"})


def damage(file: h5py.File, how: str) -> None:
    if how == "indptr":
        file["X/indptr"][3] = 10**6
    elif how == "indices":
        file["X/indices"][-1] = N_GENES
    elif how == "short":
        values = file["X/data"][:-5]
        del file["X/data"]
        file["X/data"] = values
    elif how == "shape":
        file["X"].attrs["shape"] = [N_CELLS, N_GENES + 1]
    elif how == "old":
        names = file["obs"][file["obs"].attrs["_index"]][:]
        del file["obs"]
        file["obs"] = np.array([(name,) for name in names], [("index", "S20")])
    elif how == "encoding":
        file["X"].attrs["encoding-type"] = "awkward-array"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("indptr", "data, indices and indptr do not fit together; the file is damaged"),
        ("indices", "X, cells 0 to 23: a gene index lies outside the 12 genes"),
        ("short", "data, indices and indptr do not fit together; the file is damaged"),
        ("shape", "X is 23 x 13 where 23 cells x 12 genes are due; the file is damaged"),
        ("old", "obs is missing or of a format before anndata 0.7; read it with"),
        ("encoding", "X is stored as 'awkward-array'; a matrix is needed"),
    ],
)
def test_damaged_h5ad(make: Any, tmp_path: Path, how: str, message: str) -> None:
    path = tmp_path / "in.h5ad"
    make().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        damage(file, how)
    with pytest.raises(InputError, match=f"^in.h5ad: {message}"):
        with open_input(path) as cells:
            cells.chunk(0, N_CELLS)
