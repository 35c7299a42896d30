"""Results beside the cells they are about."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from concerto_tf.errors import InputError
from concerto_tf.tasks.io.result import write_cells, write_result


def make_cells(n: int, genes: list[str], prefix: str, sparse: bool = True) -> AnnData:
    rng = np.random.default_rng(n)
    counts = rng.poisson(1.0, (n, len(genes))).astype("float32")
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {"type": rng.choice(["B", "T"], n), "age": rng.integers(20, 80, n)},
        index=[f"{prefix}{i}" for i in range(n)],
    )
    x = sp.csr_matrix(counts) if sparse else counts
    return AnnData(x, obs=obs, var=pd.DataFrame(index=genes))


GENES = [f"AB{i}C" for i in range(60)]


def found(n: int) -> dict:
    return {
        "obsm": {"X_concerto": np.arange(n * 2, dtype="f4").reshape(n, 2)},
        "obs": {"concerto_cluster": np.array(["0", "1"], object)[np.arange(n) % 2]},
        "uns": {"found": pd.DataFrame({"label": ["B", "T"], "share": [0.5, np.nan]}, ["0", "1"])},
    }


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("kind", ["h5ad", "zarr", "memory"])
def test_one_input_of_any_kind(tmp_path: Path, kind: str, sparse: bool) -> None:
    cells = make_cells(20, GENES, "c", sparse)
    given: AnnData | Path = cells
    if kind != "memory":
        given = tmp_path / f"cells.{kind}"
        getattr(cells, f"write_{kind}")(given)
    out = tmp_path / "out.h5ad"
    write_result([given], out, **found(20), names=list(cells.obs_names), rows=np.arange(20))
    written = anndata.io.read_h5ad(out)
    dense = written.X.toarray() if sp.issparse(written.X) else written.X
    np.testing.assert_array_equal(dense, cells.X.toarray() if sparse else cells.X)
    assert list(written.var_names) == GENES and list(written.obs_names) == list(cells.obs_names)
    assert list(written.obs["type"]) == list(cells.obs["type"])
    assert list(written.obs["concerto_cluster"]) == ["0", "1"] * 10
    assert isinstance(written.obs["concerto_cluster"].dtype, pd.CategoricalDtype)
    np.testing.assert_array_equal(written.obsm["X_concerto"], found(20)["obsm"]["X_concerto"])
    table = written.uns["found"]
    assert list(table.index) == ["0", "1"] and list(table["label"]) == ["B", "T"]
    np.testing.assert_array_equal(table["share"], [0.5, np.nan])


def test_what_an_anndata_in_memory_holds_is_kept(tmp_path: Path) -> None:
    cells = make_cells(20, GENES, "c")
    cells.obsm["protein"] = pd.DataFrame({"CD3": np.arange(20.0)}, cells.obs_names)
    cells.layers["spliced"] = cells.X.copy()
    cells.raw = cells.copy()
    cells.uns["note"] = "mine"
    kind = cells.obs["type"].dtype
    names = list(cells.obs_names)
    write_result([cells], tmp_path / "out.h5ad", **found(20), names=names, rows=np.arange(20))
    written = anndata.io.read_h5ad(tmp_path / "out.h5ad")
    assert list(written.obsm) == ["X_concerto", "protein"] and written.raw is not None
    pd.testing.assert_frame_equal(written.obsm["protein"], cells.obsm["protein"])
    assert "spliced" in written.layers and written.uns["note"] == "mine"
    # What was given is as it was.
    assert cells.obs["type"].dtype == kind and list(cells.obsm) == ["protein"]
    # What no file can hold does not stand in the way of the rest.
    cells.uns["note"] = object()
    write_result([cells], tmp_path / "out.h5ad", **found(20), names=names, rows=np.arange(20))
    written = anndata.io.read_h5ad(tmp_path / "out.h5ad")
    assert list(written.obsm) == ["X_concerto"]
    np.testing.assert_array_equal(written.X.toarray(), cells.X.toarray())


def test_several_inputs_over_the_union_of_their_genes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "concerto_tf")
    a, b = make_cells(8, GENES[:50], "a"), make_cells(7, GENES[10:], "b", sparse=False)
    names = [*a.obs_names, *b.obs_names]
    a.obs["day"] = 1  # b has none
    write_result([a, b], tmp_path / "out.h5ad", **found(15), names=names, rows=np.arange(15))
    assert "left out of obs, as not every input has them: day" in caplog.text
    written = anndata.io.read_h5ad(tmp_path / "out.h5ad")
    assert list(written.obs_names) == names and set(written.var_names) == set(GENES)
    frame = pd.DataFrame(written.X.toarray(), names, list(written.var_names))
    np.testing.assert_array_equal(frame.iloc[:8][GENES[:50]], a.X.toarray())
    np.testing.assert_array_equal(frame.iloc[8:][GENES[10:]], b.X)
    assert (frame.iloc[8:][GENES[:10]] == 0).all(axis=None)
    assert list(written.obs["type"]) == [*a.obs["type"], *b.obs["type"]]
    assert written.obs["age"].mean() == pytest.approx(np.mean([*a.obs["age"], *b.obs["age"]]))
    assert "concerto_input" in written.obs


def test_cells_that_were_left_out_are_left_out(tmp_path: Path) -> None:
    cells, rows = make_cells(9, GENES, "c"), np.array([0, 2, 3, 8])
    cells.write_h5ad(tmp_path / "cells.h5ad")
    names = list(cells.obs_names[rows])
    write_result(
        [tmp_path / "cells.h5ad"], tmp_path / "out.h5ad", **found(4), names=names, rows=rows
    )
    written = anndata.io.read_h5ad(tmp_path / "out.h5ad")
    assert list(written.obs_names) == names
    np.testing.assert_array_equal(written.X.toarray(), cells.X.toarray()[rows])
    assert list(written.obs["type"]) == list(cells.obs["type"].iloc[rows])


def test_an_earlier_result_is_replaced_and_a_failure_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, out = make_cells(5, GENES, "c"), tmp_path / "out.h5ad"
    cells.write_h5ad(tmp_path / "cells.h5ad")
    names = list(cells.obs_names)
    for _ in range(2):  # into its own output, too
        write_result([tmp_path / "cells.h5ad"], out, **found(5), names=names, rows=np.arange(5))
    write_result([out], out, **found(5), names=names, rows=np.arange(5))
    whole = out.read_bytes()
    bad = {**found(5), "obs": {"broken": object()}}
    with pytest.raises(Exception, match=".*"):
        write_result([tmp_path / "cells.h5ad"], out, **bad, names=names, rows=np.arange(5))
    assert out.read_bytes() == whole
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cells.h5ad", "out.h5ad"]


def test_cells_without_values(tmp_path: Path) -> None:
    write_cells(
        tmp_path / "out.h5ad",
        ["x", "y"],
        {"source": np.array(["s", None], object)},
        {"X_concerto": np.eye(2, dtype="f4")},
    )
    written = anndata.io.read_h5ad(tmp_path / "out.h5ad")
    assert written.shape == (2, 0) and list(written.obs_names) == ["x", "y"]
    assert written.obs["source"].iloc[0] == "s" and pd.isna(written.obs["source"].iloc[1])
    with pytest.raises(InputError, match="no such folder"):
        write_cells(tmp_path / "none" / "out.h5ad", [], {}, {})
