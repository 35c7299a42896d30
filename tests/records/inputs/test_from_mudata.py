"""MuData: modalities by name, cells matched by theirs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from concerto_tf.errors import InputError
from concerto_tf.records import convert
from concerto_tf.records.inputs.opening import open_input

mudata = pytest.importorskip("mudata")

N_CELLS = 30
STORES = ["memory", "backed", "h5mu", "zarr"]


def make_modality(n_features: int, prefix: str, seed: int) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(1.5, (N_CELLS, n_features)).astype(np.float32)
    counts[:, 0] += 1
    cells = ad.AnnData(sp.csr_matrix(counts))
    cells.obs_names = [f"cell{i}" for i in range(N_CELLS)]
    cells.var_names = [f"{prefix}{i}" for i in range(n_features)]
    return cells


def make(**names: ad.AnnData) -> Any:
    if not names:
        rna = make_modality(12, "AB", 0)
        rna.obs["donor"] = np.resize(["a", "b"], N_CELLS)
        names = {"rna": rna, "prot": make_modality(4, "CD", 1), "atac": make_modality(9, "peak", 2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what mudata is going to change
        mdata = mudata.MuData(names)
        mdata.obs["type"] = pd.Categorical(np.resize(["T", "B", "NK"], mdata.n_obs))
    return mdata


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[Any, str], Any]:
    def store(mdata: Any, how: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if how == "memory":
                return mdata
            if how == "zarr":
                mdata.write_zarr(tmp_path / "in.zarr")
                return tmp_path / "in.zarr"
            mdata.write(tmp_path / "in.h5mu")
            path = tmp_path / "in.h5mu"
            return mudata.read_h5mu(path, backed="r") if how == "backed" else path

    return store


@pytest.mark.parametrize("how", STORES)
def test_rna_and_protein_by_themselves(dense: Any, stored: Any, how: str) -> None:
    mdata = make()
    with open_input(stored(mdata, how)) as cells:
        assert list(cells.modalities) == ["rna", "protein"]
        assert cells.genes.ids == tuple(mdata["rna"].var_names)
        assert cells.modalities["protein"].ids == tuple(mdata["prot"].var_names)
        np.testing.assert_array_equal(dense(cells, "rna"), mdata["rna"].X.toarray())
        np.testing.assert_array_equal(dense(cells, "protein"), mdata["prot"].X.toarray())
        assert cells.barcodes(0, 2) == ["cell0", "cell1"]
        assert cells.column("donor")[1] == ["a", "b"]
        assert cells.column("type")[1] == ["B", "NK", "T"]
        assert cells.notes == [
            f"{cells.name}: the RNA is its modality 'rna'; the protein is 'prot'; atac left out "
            "(name one as a modality, atac=mod:atac)"
        ]


@pytest.mark.parametrize("how", ["memory", "h5mu"])
def test_what_is_named_decides(dense: Any, stored: Any, how: str) -> None:
    mdata = make()
    source = stored(mdata, how)
    with open_input(source, modalities={"peaks": "mod:atac"}) as cells:
        assert list(cells.modalities) == ["rna", "peaks"]
        np.testing.assert_array_equal(dense(cells, "peaks"), mdata["atac"].X.toarray())
    with open_input(source, modalities={"rna": "mod:prot"}) as cells:
        assert list(cells.modalities) == ["rna"]
        np.testing.assert_array_equal(dense(cells, "rna"), mdata["prot"].X.toarray())
    # As a model looks for its protein.
    with open_input(source, modalities={"protein": "obsm:protein"}) as cells:
        np.testing.assert_array_equal(dense(cells, "protein"), mdata["prot"].X.toarray())
    with pytest.raises(InputError, match="modality x: no modality 'atak'; did you mean 'atac'"):
        open_input(source, modalities={"x": "mod:atak"})
    with pytest.raises(InputError, match="write obsm:KEY or .* or mod:NAME"):
        open_input(source, modalities={"x": "modality"})


def test_which_is_the_rna() -> None:
    one, other = make_modality(5, "AB", 0), make_modality(3, "CD", 1)
    with open_input(make(GEX=one, adt=other)) as cells:
        assert list(cells.modalities) == ["rna", "protein"]
    with open_input(make(whatever=one)) as cells:
        assert list(cells.modalities) == ["rna"]
    with pytest.raises(InputError) as error:
        open_input(make(a=one, b=other))
    assert str(error.value) == (
        "MuData: a MuData, none of whose modalities is called rna or gex (there are: a, b); say "
        "which is the RNA (modalities={'rna': 'mod:NAME'})"
    )


@pytest.mark.parametrize("how", STORES)
def test_cells_are_matched_by_name(dense: Any, stored: Any, how: str) -> None:
    rna, prot = make_modality(12, "AB", 0)[4:].copy(), make_modality(4, "CD", 1)
    order = np.random.default_rng(0).permutation(N_CELLS - 3)
    mdata = make(rna=rna, prot=prot[order].copy())
    with open_input(stored(mdata, how)) as cells:
        assert cells.n_cells == N_CELLS - 4
        expected = prot.X.toarray()[4:]
        expected[-3:] = 0  # these lack it
        np.testing.assert_array_equal(dense(cells, "protein"), expected)
        assert cells.notes[-1] == f"{cells.name}: 4 cells of 'prot' have no RNA and are left out"
        types = dict(zip(mdata.obs_names, mdata.obs["type"], strict=True))
        codes, names = cells.column("type")
        assert [names[i] for i in codes] == [types[f"cell{i}"] for i in range(4, N_CELLS)]


def test_no_cell_in_both() -> None:
    rna, prot = make_modality(12, "AB", 0), make_modality(4, "CD", 1)
    prot.obs_names = [f"{name}-1" for name in prot.obs_names]
    with pytest.raises(InputError, match="none of its 30 cells is among those of the RNA .it has"):
        open_input(make(rna=rna, prot=prot))


def test_centered_protein_is_left_out_unless_its_counts_are_there(dense: Any) -> None:
    prot = make_modality(4, "CD", 1)
    counts = prot.X.toarray()
    prot.X = counts - counts.mean(axis=0)
    mdata = make(rna=make_modality(12, "AB", 0), prot=prot)
    with open_input(mdata) as cells:
        assert list(cells.modalities) == ["rna"]
        assert "'prot' has no counts, but negative values, and is left out" in cells.notes[0]
    mdata["prot"].layers["counts"] = sp.csr_matrix(counts)
    with open_input(mdata) as cells:
        np.testing.assert_array_equal(dense(cells, "protein"), counts)


def test_counts_of_the_rna_in_raw(dense: Any, stored: Any) -> None:
    rna = make_modality(12, "AB", 0)
    rna.raw = rna.copy()
    rna.X = np.log1p(rna.X.toarray() / 3)
    with open_input(stored(make(rna=rna), "h5mu")) as cells:
        assert cells.layer == "raw"
        np.testing.assert_array_equal(dense(cells, "rna"), rna.raw.X.toarray())
    with open_input(stored(make(rna=rna), "h5mu"), layer="X") as cells:
        np.testing.assert_array_equal(dense(cells, "rna"), rna.X)


def test_columns_by_gene_and_other_processes(stored: Any, tmp_path: Path) -> None:
    mdata = make()
    whole = convert(mdata, tmp_path / "memory", shards=1)
    for name in ("rna", "prot"):
        mdata[name].X = sp.csc_matrix(mdata[name].X)
    found = convert(stored(mdata, "h5mu"), tmp_path / "h5mu", shards=1, workers=2, chunk_cells=8)
    assert found.modalities.keys() == {"rna", "protein"}
    for one, other in zip(whole.dataset(N_CELLS), found.dataset(N_CELLS), strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key].numpy(), other[key].numpy())


def test_as_r_writes_it(dense: Any, tmp_path: Path) -> None:
    """512 bytes before the HDF5, obsm of one dimension, no column-order of text."""
    path = tmp_path / "r.h5mu"
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, n in (("gex", 6), ("adt", 2)):
            group = file.create_group(f"mod/{name}")
            group["X"] = np.full((5, n), 2.0)
            for table, names in (("obs", "abcde"), ("var", [f"AB{i}" for i in range(n)])):
                group.create_group(table)["_index"] = list(names)
                group[table].attrs["_index"] = "_index"
                group[table].attrs["column-order"] = np.zeros(0)
        file.create_group("obs")["_index"] = list("abcde")
        file["obs"].attrs.update({"_index": "_index", "column-order": np.zeros(0)})
        file["obsm/gex"] = np.ones(5, np.int32)
    path.write_bytes(b"MuData (format-version=0.1.0;)" + path.read_bytes()[30:])
    with open_input(path) as cells:
        assert list(cells.modalities) == ["rna", "protein"]
        assert (dense(cells, "rna") == 2).all() and dense(cells, "protein").shape == (5, 2)
