"""Cells that are computed or read only when they are asked for: dask arrays, lazy AnnData."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from concerto_tf._identity import identity_of_cells
from concerto_tf.records.inputs.opening import open_input
from concerto_tf.tasks.io.checksums import sha256_of_cells

N_GENES = 12


@pytest.mark.parametrize("form", [sp.csr_matrix, np.asarray])
@pytest.mark.parametrize("view", [False, True])
def test_dask_arrays_are_computed_as_they_are_read(
    make: Any, counts: Any, dense: Any, form: Any, view: bool
) -> None:
    array = pytest.importorskip("dask.array")
    adata = make()
    adata.layers["counts"] = array.from_array(form(counts()), chunks=(5, N_GENES), asarray=False)
    adata.X = array.from_array(counts() / 3, chunks=(5, N_GENES))
    adata.obsm["adt"] = array.from_array(counts(3), chunks=(5, 3))
    source = adata[2:] if view else adata
    with open_input(source, modalities={"adt": "obsm:adt"}) as cells:
        assert cells.layer == "counts"
        np.testing.assert_array_equal(dense(cells), counts()[2 if view else 0 :])
        np.testing.assert_array_equal(dense(cells, "adt"), counts(3)[2 if view else 0 :])


def test_read_lazy(normalized: Any, make: Any, counts: Any, dense: Any, tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    from anndata.experimental import read_lazy

    adata = normalized()
    adata.raw = make()
    adata.obsm["adt"] = pd.DataFrame(counts(2), adata.obs_names, ["CD3", "CD4"])
    adata.write_h5ad(tmp_path / "in.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an interface that may change
        lazy = [read_lazy(tmp_path / "in.h5ad") for _ in range(2)]
    with open_input(lazy[0], modalities={"adt": "obsm:adt"}) as cells:
        np.testing.assert_array_equal(dense(cells), counts())
        np.testing.assert_array_equal(dense(cells, "adt"), counts(2))
        assert cells.column("kind")[1] == ["B", "T"]
    assert identity_of_cells(lazy[0]) == identity_of_cells(lazy[1])
    assert sha256_of_cells(lazy[0]) == sha256_of_cells(lazy[1])
