"""The way of many cells, forced on few: graph, clusters and map."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score

from concerto_tf.metrics import graph as graphs
from concerto_tf.metrics.graph import nearest_others, scanpy_graph
from concerto_tf.tasks import neighbours
from concerto_tf.tasks.cluster import cluster
from concerto_tf.tasks.neighbours import sketch, umap

SIZES = (1200, 800, 500, 300, 150, 30, 20)


@pytest.fixture
def cells() -> AnnData:
    """3,000 cells of seven types that overlap a little, two of them rare."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(7), SIZES)
    z = rng.normal(size=(7, 16))[codes] + 0.35 * rng.normal(size=(3000, 16))
    return AnnData(obs={"type": codes.astype(str)}, obsm={"X_concerto": z.astype(np.float32)})


def force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "EXACT_CELLS", 1000)
    monkeypatch.setattr(graphs, "MANY_CELLS", 1000)
    monkeypatch.setattr(neighbours, "MANY_CELLS", 1000)
    monkeypatch.setattr(neighbours, "SKETCH_CELLS", 600)


def test_clusters_of_many_cells_agree_with_exact_ones(
    cells: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = [cluster(cells.copy(), seed=seed).obs["concerto_cluster"] for seed in (0, 1)]
    force(monkeypatch)
    found = cluster(cells.copy())
    agreed = adjusted_rand_score(found.obs["concerto_cluster"], exact[0])
    assert agreed >= 0.9 * adjusted_rand_score(*exact)
    types = found.obs.groupby("type", observed=True)["concerto_cluster"]
    of_rare = [types.get_group(code).mode()[0] for code in "56"]
    for code, of in zip("56", of_rare, strict=True):  # clusters of their own, nearly pure
        assert (found.obs["type"][found.obs["concerto_cluster"] == of] == code).mean() > 0.9
    again = cluster(cells.copy())
    assert (again.obs["concerto_cluster"] == found.obs["concerto_cluster"]).all()
    # of each pair once, by igraph itself, as through scanpy
    made = scanpy_graph(cells.obsm["X_concerto"])
    lean = graphs.leiden(made, 0.6, 0)
    monkeypatch.setattr(graphs, "MANY_CELLS", 10_000)
    assert adjusted_rand_score(lean, graphs.leiden(made, 0.6, 0)) > 0.95


def test_sketch_keeps_rare_types(cells: AnnData) -> None:
    graph = scanpy_graph(cells.obsm["X_concerto"])
    chosen = sketch(graph, 600, seed=0)
    assert len(np.unique(chosen)) == 600 and (np.diff(chosen) > 0).all()
    taken = np.bincount(cells.obs["type"].iloc[chosen].astype(int))
    # at random a fifth of each type; at least a third of the rare ones is kept
    assert (taken[5:] >= np.array(SIZES[5:]) / 3).all() and (taken > 0).all()
    assert (chosen == sketch(graph, 600, seed=0)).all()
    assert (chosen != sketch(graph, 600, seed=1)).any()


def test_map_of_many_cells_keeps_types_together(
    cells: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch)
    umap(cells)
    xy, codes = cells.obsm["X_umap"], cells.obs["type"].to_numpy(str)
    assert xy.shape == (3000, 2) and xy.dtype == np.float32 and np.isfinite(xy).all()
    near = nearest_others(xy, 10)[1]
    alike = (codes[near] == codes[:, np.newaxis]).mean(axis=1)
    assert min(alike[codes == code].mean() for code in "0123456") > 0.9
    assert len(np.unique(xy, axis=0)) > 2900  # placed between, not upon, cells of the sketch
    again = cells.copy()
    umap(again)
    np.testing.assert_array_equal(again.obsm["X_umap"], xy)
