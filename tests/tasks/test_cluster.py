"""Clusters and map of an embedding."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf.errors import InputError
from concerto_tf.tasks import cluster as module
from concerto_tf.tasks.cluster import add_clusters, umap


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


@pytest.mark.parametrize("options", [{"resolution": 0.1}, {"algorithm": "kmeans", "k": 3}])
def test_groups_are_found_and_named_by_size(options: dict) -> None:
    adata = cells()
    add_clusters(adata, **options)
    found = adata.obs["concerto_cluster"]
    assert isinstance(found.dtype, pd.CategoricalDtype)
    assert (found.astype(str) == adata.obs["truth"]).all()
    assert list(found.cat.categories) == ["0", "1", "2"]


def test_resolution_decides_how_many() -> None:
    adata = cells(sizes=(200,))
    add_clusters(adata, resolution=0.2)
    coarse = adata.obs["concerto_cluster"].nunique()
    add_clusters(adata, resolution=3.0)
    assert adata.obs["concerto_cluster"].nunique() > coarse


def test_leiden_is_scanpys() -> None:
    import scanpy as sc
    from sklearn.metrics import adjusted_rand_score

    adata = cells(apart=3.0)
    add_clusters(adata, resolution=1.0)
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

    original = module.scanpy_graph
    monkeypatch.setattr(module, "scanpy_graph", counted)
    adata = cells()
    add_clusters(adata)
    first = adata.obs["concerto_cluster"].copy()
    umap(adata)
    add_clusters(adata)
    assert len(calls) == 1
    assert (adata.obs["concerto_cluster"] == first).all()
    adata.obsm["X_concerto"] = adata.obsm["X_concerto"][::-1].copy()
    add_clusters(adata)
    assert len(calls) == 2


def test_graph_serves_scanpys_tools(tmp_path) -> None:
    import anndata
    import scanpy as sc

    adata = cells(apart=5.0)  # near enough for connections between groups
    add_clusters(adata, resolution=0.3)
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
    add_clusters(adata)
    umap(adata)
    assert adata.obs["concerto_cluster"].notna().all()
    assert adata.obsm["X_umap"].shape == (n, 2)
    assert np.isfinite(adata.obsm["X_umap"]).all()
    add_clusters(adata, algorithm="kmeans", k=1)
    assert set(adata.obs["concerto_cluster"]) == {"0"}


def test_collapsed_embedding_has_clusters_and_a_map() -> None:
    adata = cells()
    adata.obsm["X_concerto"][:] = 1.0
    add_clusters(adata)
    umap(adata)
    assert np.isfinite(adata.obsm["X_umap"]).all()


def test_any_representation_serves() -> None:
    adata = AnnData(cells().obsm["X_concerto"])
    add_clusters(adata, rep="X", algorithm="kmeans", k=3)
    assert adata.obs["concerto_cluster"].nunique() == 3


def test_unsuitable_input_is_refused() -> None:
    adata = cells()
    with pytest.raises(InputError, match=r"no embedding 'X_pca' in obsm \(there: X_concerto\)"):
        add_clusters(adata, rep="X_pca")
    with pytest.raises(InputError, match="unknown algorithm 'louvain': use one of leiden, kmeans"):
        add_clusters(adata, algorithm="louvain")
    with pytest.raises(InputError, match="give k"):
        add_clusters(adata, algorithm="kmeans")
    with pytest.raises(InputError, match="from 1 to the 120 cells"):
        add_clusters(adata, algorithm="kmeans", k=121)
    with pytest.raises(InputError, match="k is for kmeans"):
        add_clusters(adata, k=3)
    with pytest.raises(InputError, match="resolution is 0"):
        add_clusters(adata, resolution=0)
    adata.obsm["X_concerto"][7, 0] = np.inf
    with pytest.raises(InputError, match="not finite in 1 of 120 cells, the first being cell 7"):
        umap(adata)
    adata.obsm["X_concerto"][:] = 1.0
    with pytest.raises(InputError, match="only 1 different points"):
        add_clusters(adata, algorithm="kmeans", k=2)
    assert "concerto_cluster" not in adata.obs


def test_soft_kmeans_finds_the_groups_again() -> None:
    adata = cells(apart=6.0)
    add_clusters(adata, algorithm="soft-kmeans", k=3)
    assert (adata.obs["concerto_cluster"].astype(str) == adata.obs["truth"]).mean() > 0.98
    again = cells(apart=6.0)
    add_clusters(again, algorithm="soft-kmeans", k=3)
    assert (adata.obs["concerto_cluster"] == again.obs["concerto_cluster"]).all()


@pytest.mark.parametrize("k", [None, 3])
def test_consensus_of_runs(k: int | None) -> None:
    adata = cells()
    add_clusters(adata, algorithm="consensus", k=k, runs=6, resolution=0.2)
    assert (adata.obs["concerto_cluster"].astype(str) == adata.obs["truth"]).all()
    sure = adata.obs["concerto_cluster_agreement"]
    assert sure.between(0.5, 1).all() and sure.dtype == np.float32


def test_runs_differ_and_follow_from_the_seed() -> None:
    adata = cells(sizes=(200,))
    one, again = (module._runs(adata, "X_concerto", 1.0, 4, 0, 8) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert len(np.unique(one, axis=1).T) == one.shape[1] == 8
    assert not np.array_equal(one, module._runs(adata, "X_concerto", 1.0, 4, 1, 8))


def test_consensus_of_columns_needs_no_embedding() -> None:
    adata = cells()
    truth = adata.obs["truth"].astype(int).to_numpy()
    del adata.obsm["X_concerto"]
    rng = np.random.default_rng(0)
    for run in range(5):
        adata.obs[f"run{run}"] = np.where(rng.random(120) < 0.2, rng.integers(0, 3, 120), truth)
    names = [f"run{run}" for run in range(5)]
    single = max((adata.obs[name] == truth).mean() for name in names)
    add_clusters(adata, algorithm="consensus", clusterings=names)
    agreed = (adata.obs["concerto_cluster"].astype(str) == adata.obs["truth"]).mean()
    assert agreed > single and agreed > 0.95


def test_unsuitable_consensus_is_refused() -> None:
    adata = cells()
    adata.obs["gap"] = [None, *["a"] * 119]
    for options, message in [
        ({"runs": 1}, "runs is 1: a consensus needs at least 2"),
        ({"runs": 4, "k": 121}, "from 1 to the 120 cells"),
        ({"runs": 4, "k": 0}, "k is 0"),
        ({"clusterings": ["truth"]}, "consensus of 1 clusterings"),
        ({"clusterings": ["truth", "nothing"]}, r"no column 'nothing' in obs \(there: truth, gap"),
        ({"clusterings": ["truth", "gap"]}, "1 of 120 clusters 'gap' are missing"),
        ({"clusterings": ["truth", "truth"], "runs": 2}, "leave one of them out"),
        ({"clusterings": ["truth", "truth"], "k": 4}, "only 3 groups of cells apart"),
        ({"algorithm": "kmeans", "k": 2, "runs": 2}, "runs and clusterings are for consensus"),
        ({"algorithm": "soft-kmeans"}, "give k"),
        ({"resolution": -1.0}, "resolution is -1"),
    ]:
        with pytest.raises(InputError, match=message):
            add_clusters(adata, **{"algorithm": "consensus", **options})
    assert "concerto_cluster" not in adata.obs
