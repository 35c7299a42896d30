"""Pseudotime: the planted order is found, and what is not connected to the root has none."""

from __future__ import annotations

import logging
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from concerto_tf.errors import InputError
from concerto_tf.tasks.pseudotime import pseudotime


def line(n: int = 150, apart: int = 0) -> anndata.AnnData:
    """Cells along a curve in mixed order, by thirds in `stage`, and `apart` cells far away."""
    rng = np.random.default_rng(0)
    time = rng.permutation(np.linspace(0, 1, n))
    z = np.stack([10 * time, np.sin(3 * time), np.zeros(n)], 1) + rng.normal(0, 0.05, (n, 3))
    z = np.concatenate([z, 500 + rng.normal(size=(apart, 3))])
    stage = np.append(
        np.array(["early", "middle", "late"])[(time * 2.999).astype(int)], ["far"] * apart
    )
    obs = pd.DataFrame({"time": np.append(time, [np.nan] * apart), "stage": stage})
    obs.index = [f"cell{i}" for i in range(len(obs))]
    adata = anndata.AnnData(np.zeros((len(obs), 1), "f4"), obs)
    adata.obsm["X_concerto"] = z.astype("f4")
    return adata


def test_order_from_a_cell_is_found() -> None:
    cells = line()
    first = cells.obs_names[cells.obs["time"].argmin()]
    pseudotime(cells, first, groupby="stage")
    found = cells.obs["concerto_pseudotime"]
    assert spearmanr(found, cells.obs["time"])[0] > 0.98
    assert found[first] == 0 and found.max() == 1
    assert cells.obs_names[cells.uns["iroot"]] == first
    names = list(cells.obs["stage"].cat.categories)
    linked = cells.uns["paga"]["connectivities"].toarray()
    link = {(a, b): linked[names.index(a), names.index(b)] for a in names for b in names}
    assert link["early", "middle"] > link["early", "late"]


def test_root_of_a_group_is_in_its_midst() -> None:
    cells = line()
    pseudotime(cells, "early", groupby="stage")
    root = cells.obs.iloc[cells.uns["iroot"]]
    assert root["stage"] == "early" and abs(root["time"] - 1 / 6) < 0.03


def test_a_name_that_is_both_is_the_groups_only_where_these_are_named() -> None:
    cells = line()
    cells.obs_names = [str(i) for i in range(cells.n_obs)]
    pseudotime(cells, "0")
    assert cells.uns["iroot"] == 0
    pseudotime(cells, "0", groupby="concerto_cluster")
    own = cells.obs["concerto_cluster"].to_numpy()
    assert cells.uns["iroot"] != 0 and own[cells.uns["iroot"]] == "0"


def test_cells_that_are_not_connected_have_no_pseudotime(caplog) -> None:
    cells = line(apart=40)
    logging.getLogger("concerto_tf").propagate = True
    pseudotime(cells, "early", groupby="stage")
    far = (cells.obs["stage"] == "far").to_numpy()
    assert (cells.obs["concerto_pseudotime"].isna().to_numpy() == far).all()
    assert cells.obs["concerto_pseudotime"].max() == 1
    assert "40 of 190 cells are not connected to the root; their pseudotime is NaN" in caplog.text


def test_groups_that_nothing_connects_have_a_graph_without_edges() -> None:
    cells = line(apart=40)
    cells.obs["place"] = np.where(cells.obs["stage"] == "far", "far", "near")
    pseudotime(cells, "near", groupby="place")
    assert cells.uns["paga"]["connectivities"].shape == (2, 2)
    assert cells.uns["paga"]["connectivities"].nnz == 0


def test_cells_without_a_group_are_ordered_all_the_same() -> None:
    cells = line()
    cells.obs.loc[cells.obs_names[:30], "stage"] = None
    pseudotime(cells, "early", groupby="stage")
    assert cells.obs["concerto_pseudotime"].notna().all()


def test_file_keeps_what_was_in_it(tmp_path: Path) -> None:
    line().write_h5ad(tmp_path / "in.h5ad")
    pseudotime(str(tmp_path / "in.h5ad"), "early", tmp_path / "out.h5ad", groupby="stage")
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert {"time", "stage", "concerto_pseudotime"} <= set(found.obs)
    assert "X_concerto" in found.obsm
    assert found.uns["paga"]["groups"] == "stage" and len(found.uns["stage_sizes"]) == 3


@pytest.mark.parametrize(
    ("root", "groupby", "message"),
    [
        ("erly", "stage", "the root 'erly' is neither a cell nor a group of 'stage'; did you mean"),
        ("early", None, r"neither a cell nor a group of 'concerto_cluster'.*groupby=\.\.\."),
        ("early", "stages", "no column 'stages' in obs; did you mean 'stage'"),
        ("early", "time", "column 'time' has 150 values for 150 cells; name a column of groups"),
    ],
)
def test_unsuitable_root(root: str, groupby: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pseudotime(line(), root, groupby=groupby)


def test_unsuitable_cells() -> None:
    with pytest.raises(InputError, match="no embedding 'X_pca' in obsm"):
        pseudotime(line(), "early", rep="X_pca")
    with pytest.raises(InputError, match="4 cells are too few"):
        pseudotime(line()[:4].copy(), "cell0")
