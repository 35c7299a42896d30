"""X holds no counts, as in CELLxGENE's files: where they are is found."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from concerto_tf.errors import InputError
from concerto_tf.records.inputs.opening import open_input

N_GENES = 12
SAVE = ["memory", "view", "backed", "h5ad", "zarr2", "zarr3"]


@pytest.mark.parametrize("how", SAVE)
@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_raw_is_taken_with_its_own_genes(
    normalized: Any, make: Any, counts: Any, dense: Any, stored: Any, how: str, form: Any
) -> None:
    adata = normalized()
    raw = make(form(counts(15, seed=1)))
    raw.var_names = [f"ENSG{i:011d}" for i in range(15)]
    raw.var["feature_name"] = [f"G{i}X" for i in range(15)]
    adata.raw = raw
    with open_input(stored(adata, how)) as cells:
        assert (cells.layer, cells.layers) == ("raw", [])
        if how != "view":  # whose making leaves out columns of var
            assert cells.genes.names == tuple(raw.var["feature_name"])
        np.testing.assert_array_equal(dense(cells), counts(15, seed=1))
        assert cells.notes == [
            f"{cells.name}: X holds no counts; those in raw.X are taken (name 'X' as the layer "
            "to take X)"
        ]


@pytest.mark.parametrize("how", ["memory", "h5ad"])
def test_what_is_asked_for_decides(
    normalized: Any, make: Any, counts: Any, dense: Any, stored: Any, how: str
) -> None:
    adata = normalized()
    adata.raw = make()
    adata.layers["spliced"] = sp.csr_matrix(counts(seed=2))
    source = stored(adata, how)
    for layer, values in {"X": normalized().X.toarray(), "spliced": counts(seed=2)}.items():
        with open_input(source, layer=layer) as cells:
            assert (cells.layer, cells.notes) == (layer, [])
            np.testing.assert_array_equal(dense(cells), values)


@pytest.mark.parametrize("how", ["memory", "h5ad"])
def test_a_layer_counts_is_taken_where_raw_holds_none(
    normalized: Any, counts: Any, dense: Any, stored: Any, how: str
) -> None:
    adata = normalized()
    adata.raw = normalized()
    adata.layers["counts"] = sp.csr_matrix(counts())
    with open_input(stored(adata, how)) as cells:
        assert cells.layer == "counts"
        np.testing.assert_array_equal(dense(cells), counts())


@pytest.mark.parametrize("how", ["memory", "h5ad"])
def test_scaled_x(make: Any, counts: Any, dense: Any, stored: Any, how: str) -> None:
    adata = make(counts() - counts().mean(axis=0))
    adata.raw = make()
    with open_input(stored(adata, how)) as cells:
        assert cells.layer == "raw"
        np.testing.assert_array_equal(dense(cells), counts())


def test_x_stays_where_it_holds_counts_or_nothing_does(
    make: Any, counts: Any, normalized: Any
) -> None:
    adata = make()
    adata.raw = make(sp.csr_matrix(counts(15, seed=1)))
    with open_input(adata) as cells:
        assert (cells.layer, cells.notes) == ("X", [])
    adata = normalized()
    adata.raw = normalized()
    with open_input(adata) as cells:
        assert (cells.layer, cells.notes, cells.layers) == ("X", [], ["raw"])


def test_symbols_that_only_var_has(normalized: Any, make: Any, counts: Any) -> None:
    adata = normalized()
    adata.raw = make(sp.csr_matrix(counts(15, seed=1)))
    ids = [f"ENSG{i:011d}" for i in range(15)]
    adata.var_names, adata.raw.var.index = ids[:N_GENES], ids
    adata.var["feature_name"] = [f"G{i}X" for i in range(N_GENES)]
    with open_input(adata) as cells:
        assert cells.genes.ids == tuple(ids)
        assert cells.genes.names == (*adata.var["feature_name"], *ids[N_GENES:])


def test_another_process_reads_the_same(
    normalized: Any, make: Any, dense: Any, counts: Any, tmp_path: Path
) -> None:
    adata = normalized()
    adata.raw = make()
    adata.write_h5ad(tmp_path / "in.h5ad")
    with open_input(tmp_path / "in.h5ad") as cells:
        with pickle.loads(pickle.dumps(cells)) as copy:
            np.testing.assert_array_equal(dense(copy), counts())


@pytest.mark.parametrize("how", ["memory", "h5ad"])
def test_no_x(make: Any, dense: Any, counts: Any, stored: Any, how: str) -> None:
    adata = make()
    adata.layers["spliced"] = adata.X
    adata.X = None
    source = stored(adata, how)
    with pytest.raises(InputError, match="there is no X; choose a layer: spliced"):
        open_input(source)
    with open_input(source, layer="spliced") as cells:
        np.testing.assert_array_equal(dense(cells), counts())
    adata.layers["counts"] = adata.layers.pop("spliced")
    with open_input(stored(adata, how)) as cells:
        np.testing.assert_array_equal(dense(cells), counts())
        assert cells.layer == "counts"
        assert cells.notes == [
            f"{cells.name}: there is no X; the counts in the layer 'counts' are taken"
        ]
