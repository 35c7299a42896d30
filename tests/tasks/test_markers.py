"""Markers of clusters, against scanpy."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf._files import write_table
from concerto_tf.records import Records, convert
from concerto_tf.tasks.markers import COLUMNS, marker_table, rank_markers


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """Three groups and a cell by itself; some genes are never or always the same."""
    rng = np.random.default_rng(0)
    group = np.array([*rng.integers(0, 3, 149), 3])
    counts = rng.poisson(rng.gamma(0.5, 2.0, (4, 130))[group])
    counts[:, 0] += 1
    counts[:, 1] = 0
    names = pd.Categorical.from_codes(group, ["0", "1", "2", "3"])
    cells = AnnData(counts.astype("f4"), pd.DataFrame({"group": names}))
    cells.obs_names, cells.var_names = [f"c{i}" for i in range(150)], [f"G{i}" for i in range(130)]
    return cells


@pytest.fixture(scope="module")
def records(cells: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Records:
    return convert(cells, tmp_path_factory.mktemp("markers") / "records")


@pytest.mark.filterwarnings("ignore")
def test_markers_are_scanpys(cells: AnnData, records: Records) -> None:
    import scanpy as sc

    found = rank_markers(records, cells.obs["group"])
    known = cells.copy()
    sc.pp.normalize_total(known, target_sum=1e4)
    sc.pp.log1p(known)
    sc.tl.rank_genes_groups(
        known, "group", groups=["0", "1", "2"], method="t-test_overestim_var", pts=True, n_genes=100
    )
    theirs = known.uns["rank_genes_groups"]
    assert set(found) == set(theirs) and set(found["params"].items()) < set(
        theirs["params"].items()
    )
    for name in ("scores", "logfoldchanges", "pvals", "pvals_adj"):
        assert found[name].dtype == theirs[name].dtype
        for group in ("0", "1", "2"):
            ours = dict(zip(found["names"][group], found[name][group], strict=True))
            same = [ours.get(gene, np.nan) for gene in theirs["names"][group]]
            np.testing.assert_allclose(same, theirs[name][group], rtol=1e-4, atol=1e-12)
    for name in ("pts", "pts_rest"):
        shares = theirs[name].loc[found[name].index, ["0", "1", "2"]]
        np.testing.assert_allclose(found[name], shares)


@pytest.mark.filterwarnings("ignore")
def test_markers_from_a_file_serve_scanpy(cells: AnnData, records: Records, tmp_path: Path) -> None:
    import scanpy as sc

    held = cells.copy()
    held.uns["rank_genes_groups"] = rank_markers(records, cells.obs["group"])
    held.write_h5ad(tmp_path / "cells.h5ad")
    held = anndata.read_h5ad(tmp_path / "cells.h5ad")
    sc.pl.rank_genes_groups(held, show=False)
    table = sc.get.rank_genes_groups_df(held, group="1")
    ours = marker_table(held.uns["rank_genes_groups"]).query("cluster == '1'")
    assert list(ours["gene"]) == list(table["names"][: len(ours)])
    np.testing.assert_allclose(ours["share_in"], table["pct_nz_group"][: len(ours)])


def test_table_holds_what_is_higher_in_the_cluster(cells: AnnData, records: Records) -> None:
    table = marker_table(rank_markers(records, cells.obs["group"]))
    assert list(table) == COLUMNS and set(table["cluster"]) == {"0", "1", "2"}
    for cluster, part in table.groupby("cluster"):
        assert list(part["rank"]) == list(range(1, len(part) + 1))
        assert part["score"].is_monotonic_decreasing and (part["score"] > 0).all()
        own = cells[cells.obs["group"] == cluster].to_df()
        assert (part["share_in"].to_numpy() == (own > 0).mean()[part["gene"]].to_numpy()).all()
    assert (table.query("rank == 1")["log_fold_change"] > 1).all()


def test_one_cluster_has_no_markers(cells: AnnData, records: Records, tmp_path: Path) -> None:
    found = rank_markers(records, pd.Series(pd.Categorical(["0"] * 150), name="group"))
    assert found == {}
    write_table(tmp_path / "markers.tsv", marker_table(found))
    assert (tmp_path / "markers.tsv").read_text() == "\t".join(COLUMNS) + "\n"
