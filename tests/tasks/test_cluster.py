"""Clusters and map of an embedding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from concerto_tf.errors import InputError
from concerto_tf.tasks import cluster as module
from concerto_tf.tasks import neighbours
from concerto_tf.tasks.cluster import cluster
from concerto_tf.tasks.io.provenance import steps_in
from concerto_tf.tasks.io.run_folder import finished_run
from concerto_tf.tasks.neighbours import umap
from concerto_tf.tasks.run import run


def cells(sizes: tuple[int, ...] = (60, 40, 20), apart: float = 20.0) -> AnnData:
    """Groups of the given sizes, in mixed order, in X_concerto."""
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    names = [f"cell{i}" for i in range(len(truth))]
    obs = pd.DataFrame({"truth": truth.astype(str)}, index=names)
    adata = AnnData(np.zeros((len(truth), 1), "f4"), obs)
    z = rng.normal(size=(len(truth), 6)) + apart * np.eye(6)[truth]
    adata.obsm["X_concerto"] = z.astype("f4")
    return adata


@pytest.mark.parametrize("options", [{"resolution": 0.1}, {"algorithm": "kmeans", "n_clusters": 3}])
def test_groups_are_found_and_named_by_size(options: dict) -> None:
    adata = cells()
    cluster(adata, **options)
    found = adata.obs["concerto_cluster"]
    assert isinstance(found.dtype, pd.CategoricalDtype)
    assert (found.astype(str) == adata.obs["truth"]).all()
    assert list(found.cat.categories) == ["0", "1", "2"]


def test_resolution_decides_how_many() -> None:
    adata = cells(sizes=(200,))
    cluster(adata, resolution=0.2)
    coarse = adata.obs["concerto_cluster"].nunique()
    cluster(adata, resolution=3.0)
    assert adata.obs["concerto_cluster"].nunique() > coarse


@pytest.mark.slow
def test_leiden_is_scanpys() -> None:
    import scanpy as sc

    adata = cells(apart=3.0)
    cluster(adata, resolution=1.0)
    sc.pp.neighbors(adata, n_neighbors=15, use_rep="X_concerto")
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False)
    assert adjusted_rand_score(adata.obs["leiden"], adata.obs["concerto_cluster"]) == 1.0


def test_graph_is_computed_once_and_again_for_a_new_embedding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def counted(z: np.ndarray, **options: int) -> AnnData:
        calls.append(len(z))
        return original(z, **options)

    original = neighbours.scanpy_graph
    monkeypatch.setattr(neighbours, "scanpy_graph", counted)
    adata = cells()
    cluster(adata)
    first = adata.obs["concerto_cluster"].copy()
    umap(adata)
    cluster(adata)
    assert len(calls) == 1
    assert (adata.obs["concerto_cluster"] == first).all()
    adata.obsm["X_concerto"] = adata.obsm["X_concerto"][::-1].copy()
    cluster(adata)
    assert len(calls) == 2


def test_graph_serves_scanpys_tools(tmp_path) -> None:
    import anndata
    import scanpy as sc

    adata = cells(apart=5.0)  # near enough for connections between groups
    cluster(adata, resolution=0.3)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    adata = anndata.read_h5ad(tmp_path / "cells.h5ad")
    umap(adata)  # on the stored graph
    sc.tl.paga(adata, groups="concerto_cluster", neighbors_key="concerto_neighbors")
    n = adata.obs["concerto_cluster"].nunique()
    assert adata.uns["paga"]["connectivities"].shape == (n, n)


def test_umap_keeps_groups_apart_and_is_seeded() -> None:
    adata = cells()
    umap(adata)
    xy = adata.obsm["X_umap"]
    assert (xy.shape, xy.dtype) == ((120, 2), np.float32)
    centers = np.stack([xy[adata.obs["truth"] == k].mean(0) for k in "012"])
    nearest = np.square(xy[:, None] - centers).sum(-1).argmin(1)
    assert (nearest == adata.obs["truth"].astype(int)).mean() > 0.99
    again = cells()
    umap(again)
    np.testing.assert_array_equal(again.obsm["X_umap"], xy)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 10, 15, 16, 17])
def test_few_cells(n: int) -> None:
    adata = cells(sizes=(n,))
    cluster(adata)
    umap(adata)
    assert adata.obs["concerto_cluster"].notna().all()
    assert adata.obsm["X_umap"].shape == (n, 2)
    assert np.isfinite(adata.obsm["X_umap"]).all()
    cluster(adata, algorithm="kmeans", n_clusters=1)
    assert set(adata.obs["concerto_cluster"]) == {"0"}


def test_collapsed_embedding_has_clusters_and_a_map() -> None:
    adata = cells()
    adata.obsm["X_concerto"][:] = 1.0
    cluster(adata)
    umap(adata)
    assert np.isfinite(adata.obsm["X_umap"]).all()


def test_any_representation_serves() -> None:
    adata = AnnData(cells().obsm["X_concerto"])
    cluster(adata, rep="X", algorithm="kmeans", n_clusters=3)
    assert adata.obs["concerto_cluster"].nunique() == 3


def test_unsuitable_input_is_refused() -> None:
    adata = cells()
    with pytest.raises(
        InputError, match="no embedding 'X_pca' in obsm; there are: X_concerto. Make"
    ):
        cluster(adata, rep="X_pca")
    with pytest.raises(InputError, match="no algorithm 'louvain'; choose one of leiden, kmeans"):
        cluster(adata, algorithm="louvain")
    with pytest.raises(InputError, match=r"give it \(n_clusters=...\)"):
        cluster(adata, algorithm="kmeans")
    with pytest.raises(InputError, match="from 1 to the 120 cells"):
        cluster(adata, algorithm="kmeans", n_clusters=121)
    with pytest.raises(InputError, match="leiden takes a resolution and no number"):
        cluster(adata, n_clusters=3)
    with pytest.raises(InputError, match="resolution is 0"):
        cluster(adata, resolution=0)
    adata.obsm["X_concerto"][7, 0] = np.inf
    with pytest.raises(InputError, match="not finite in 1 of 120 cells, the first being cell 7"):
        umap(adata)
    adata.obsm["X_concerto"][:] = 1.0
    with pytest.raises(InputError, match="only 1 different points"):
        cluster(adata, algorithm="kmeans", n_clusters=2)
    assert "concerto_cluster" not in adata.obs


def test_soft_kmeans_finds_the_groups_again() -> None:
    adata = cells(apart=6.0)
    cluster(adata, algorithm="soft-kmeans", n_clusters=3)
    assert (adata.obs["concerto_cluster"].astype(str) == adata.obs["truth"]).mean() > 0.98
    again = cells(apart=6.0)
    cluster(again, algorithm="soft-kmeans", n_clusters=3)
    assert (adata.obs["concerto_cluster"] == again.obs["concerto_cluster"]).all()


@pytest.mark.parametrize("n_clusters", [None, 3])
def test_consensus_of_runs(n_clusters: int | None) -> None:
    adata = cells()
    cluster(adata, algorithm="consensus", n_clusters=n_clusters, runs=6, resolution=0.2)
    assert (adata.obs["concerto_cluster"].astype(str) == adata.obs["truth"]).all()
    sure = adata.obs["concerto_cluster_agreement"]
    assert sure.between(0.5, 1).all() and sure.dtype == np.float32
    cluster(adata)  # whose clusters are others
    assert "concerto_cluster_agreement" not in adata.obs


def test_runs_differ_and_follow_from_the_seed() -> None:
    adata = cells(sizes=(200,))
    z = adata.obsm["X_concerto"]
    one, again = (module._runs(adata, "X_concerto", z, 1.0, 4, 0, 8) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert len(np.unique(one, axis=1).T) == one.shape[1] == 8
    assert not np.array_equal(one, module._runs(adata, "X_concerto", z, 1.0, 4, 1, 8))


def test_consensus_of_columns_needs_no_embedding() -> None:
    adata = cells()
    truth = adata.obs["truth"].astype(int).to_numpy()
    del adata.obsm["X_concerto"]
    rng = np.random.default_rng(0)
    names = [f"run{i}" for i in range(5)]
    for name in names:
        adata.obs[name] = np.where(rng.random(120) < 0.2, rng.integers(0, 3, 120), truth)
    single = max((adata.obs[name] == truth).mean() for name in names)
    cluster(adata, algorithm="consensus", clusterings=names)
    agreed = (adata.obs["concerto_cluster"].astype(str) == adata.obs["truth"]).mean()
    assert agreed > single and agreed > 0.95


def test_unsuitable_consensus_is_refused() -> None:
    adata = cells()
    adata.obs["gap"] = [None, *["a"] * 119]
    for options, message in [
        ({"runs": 1}, "runs is 1; a consensus needs at least 2"),
        ({"runs": 4, "n_clusters": 121}, "from 1 to the 120 cells"),
        ({"runs": 4, "n_clusters": 0}, "number of clusters is 0"),
        ({"clusterings": ["truth"]}, "consensus of 1 clusterings"),
        (
            {"clusterings": ["truth", "nothing"]},
            "no column 'nothing' in obs; there are: truth, gap",
        ),
        ({"clusterings": ["truth", "gap"]}, "1 of 120 clusters 'gap' are missing"),
        ({"clusterings": ["truth", "truth"], "runs": 2}, "leave one of them out"),
        ({"clusterings": ["truth", "truth"], "n_clusters": 4}, "only 3 groups of cells apart"),
        ({"algorithm": "kmeans", "n_clusters": 2, "runs": 2}, "are for a consensus; choose that"),
        ({"algorithm": "soft-kmeans"}, "soft-kmeans needs the number"),
        ({"resolution": -1.0}, "resolution is -1"),
    ]:
        with pytest.raises(InputError, match=message):
            cluster(adata, **{"algorithm": "consensus", **options})
    assert "concerto_cluster" not in adata.obs


ASKED: dict[str, Any] = {"label_key": "type", "genes": "all", "epochs": 1, "batch_size": 30}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cells.h5ad` and a finished run on it, `out`. Not to be changed."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, 120)
    counts = rng.poisson(rng.gamma(0.5, 2.0, (3, 60))[kind]) + 1
    names = np.array(["B", "NK", "T"], object)[kind]
    names[:9] = None  # some cells have no label
    adata = AnnData(
        counts.astype("f4"), {"type": names, "plate": [f"P{i % 4}" for i in range(120)]}
    )
    adata.var_names = [f"G{i}" for i in range(60)]
    adata.uns["study"] = {"year": 2024}
    folder = tmp_path_factory.mktemp("run")
    adata.write_h5ad(folder / "cells.h5ad")
    run(folder / "cells.h5ad", folder / "out", **ASKED)
    return folder


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to change."""
    return shutil.copytree(finished / "out", tmp_path / "out")


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_run_is_clustered_anew_and_still_finished(finished: Path, out: Path) -> None:
    before, old = content(out), anndata.read_h5ad(out / "result.h5ad")
    found = cluster(out, algorithm="kmeans", n_clusters=5)
    after, new = content(out), anndata.read_h5ad(out / "result.h5ad")
    changed = {
        "result.h5ad",
        "markers.tsv",
        "metrics.json",
        "figures/umap_cluster.png",
        "report.html",
        "run.json",
    }
    assert {name for name in after if after[name] != before.get(name)} == changed
    assert set(after) == set(before)

    assert new.obs["concerto_cluster"].nunique() == 5
    pd.testing.assert_frame_equal(new.obs, found.obs)
    others = ["type", "plate"]
    pd.testing.assert_frame_equal(new.obs[others], old.obs[others])
    np.testing.assert_array_equal(new.X, old.X)
    assert set(new.obsm) == set(old.obsm)
    assert set(new.uns) == {
        "study",
        "neighbors",
        "concerto",
        "rank_genes_groups",
        "concerto_cluster_support",
    }
    assert new.uns["rank_genes_groups"]["names"].dtype.names == tuple("01234")
    assert set(old.uns["rank_genes_groups"]["names"].dtype.names) == set(
        old.obs["concerto_cluster"]
    )
    assert (new.obsp["connectivities"] != old.obsp["connectivities"]).nnz == 0
    assert [step["command"] for step in steps_in(new.uns["concerto"])] == ["run", "cluster"]
    np.testing.assert_array_equal(new.obsm["X_umap"], old.obsm["X_umap"])

    was, metrics = (json.loads(one["metrics.json"]) for one in (before, after))
    has = new.obs["type"].notna()
    pair = new.obs["type"][has], new.obs["concerto_cluster"][has]
    assert metrics == was | {
        "clusters": 5,
        "ari_clusters": adjusted_rand_score(*pair),
        "nmi_clusters": normalized_mutual_info_score(*pair),
    }
    assert list(metrics) == list(was)

    assert run(finished / "cells.h5ad", out, **ASKED) == metrics
    assert {name: after[name] for name in changed} == {n: content(out)[n] for n in changed}


def test_run_clustered_as_it_was_is_as_it_was(out: Path) -> None:
    """What `run` and `cluster` say of clusters is the same, cells without a label included."""
    before, old = content(out), anndata.read_h5ad(out / "result.h5ad")
    cluster(out, algorithm="consensus", runs=3)
    assert "concerto_cluster_agreement" in anndata.read_h5ad(out / "result.h5ad").obs
    cluster(out)
    after = content(out)
    # Which tell of both clusterings.
    for name in ("result.h5ad", "report.html", "run.json"):
        del before[name], after[name]
    assert after == before
    pd.testing.assert_frame_equal(anndata.read_h5ad(out / "result.h5ad").obs, old.obs)


def test_a_result_that_scanpy_changed_is_clustered_as_it_is(out: Path, caplog) -> None:
    adata = anndata.read_h5ad(out / "result.h5ad")
    del adata.obs["type"]
    adata.obs["mine"] = "kept"
    adata.write_h5ad(out / "result.h5ad")
    cluster(out)
    assert "result.h5ad: was changed since; it is taken as it is" in caplog.text
    assert (anndata.read_h5ad(out / "result.h5ad").obs["mine"] == "kept").all()
    # Clusters are not scored by labels that are gone.
    metrics = json.loads((out / "metrics.json").read_text())
    assert "ari_kmeans" in metrics and not {"ari_clusters", "nmi_clusters"} & set(metrics)
    (out / "result.h5ad").write_bytes(b"")
    with pytest.raises(InputError, match="result.h5ad"):
        cluster(out)


def test_markers_of_other_clusters_go_where_no_records_are(out: Path, caplog) -> None:
    shutil.rmtree(out / "records")
    cluster(out, algorithm="kmeans", n_clusters=5)
    assert "the clusters have no markers and no support" in caplog.text
    result = anndata.read_h5ad(out / "result.h5ad")
    assert not {"rank_genes_groups", "concerto_cluster_support"} & set(result.uns)
    assert "concerto_cluster_support" not in result.obs
    assert len((out / "markers.tsv").read_text().splitlines()) == 1
    adata = anndata.read_h5ad(out / "result.h5ad")
    adata.uns["rank_genes_groups"] = {"params": {"groupby": "type"}}
    assert "rank_genes_groups" in cluster(adata).uns  # which are of the user's labels


def test_clusters_of_a_run_written_elsewhere(out: Path, tmp_path: Path) -> None:
    before = content(out)
    cluster(out, tmp_path / "other.h5ad", algorithm="kmeans", n_clusters=5)
    assert anndata.read_h5ad(tmp_path / "other.h5ad").obs["concerto_cluster"].nunique() == 5
    assert content(out) == before


def test_no_finished_run_is_refused(out: Path, tmp_path: Path) -> None:
    with finished_run(out), pytest.raises(InputError, match="another process is at work there"):
        cluster(out)
    with pytest.raises(InputError, match="number of clusters is 121"):
        cluster(out, algorithm="kmeans", n_clusters=121)
    (out / "metrics.json").unlink()
    before = content(out)
    with pytest.raises(
        InputError, match="out: the run there is not finished, or damaged; call `run` again"
    ):
        cluster(out)
    assert content(out) == before
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="mine: holds no run; give the folder of a finished `run`"):
        cluster(tmp_path / "mine", tmp_path / "other.h5ad")
    assert not (tmp_path / "other.h5ad").exists()
