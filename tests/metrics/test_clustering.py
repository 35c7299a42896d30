"""Clusterings and their agreement with labels, against the papers' formulas written out."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from concerto_tf.errors import InputError
from concerto_tf.metrics import agreement, kmeans_scores, leiden_scores
from concerto_tf.metrics.clustering import kmeans_partitions
from concerto_tf.metrics.graph import nearest_others, restore_graph, scanpy_graph, umap_layout


def blobs(n: int, k: int, apart: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """n cells in k groups whose centers have distances of about `apart` standard deviations."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % k
    return rng.normal(size=(k, 8))[labels] * apart / 4 + rng.normal(size=(n, 8)), labels


def entropy(codes: np.ndarray) -> float:
    p = np.unique(codes, return_counts=True)[1] / len(codes)
    return float(-(p * np.log(p)).sum())


def ari(labels: np.ndarray, clusters: np.ndarray) -> float:
    """CLEAR, equations 4 and 5: over all pairs of cells, corrected for chance."""
    pairs = list(combinations(range(len(labels)), 2))
    same = np.array([labels[i] == labels[j] for i, j in pairs])
    together = np.array([clusters[i] == clusters[j] for i, j in pairs])
    expected = same.sum() * together.sum() / len(pairs)
    most = (same.sum() + together.sum()) / 2
    return float(((same & together).sum() - expected) / (most - expected))


def test_agreement_is_as_printed() -> None:
    rng = np.random.default_rng(0)
    labels, clusters = rng.integers(3, size=60), rng.integers(5, size=60)
    clusters[:40] = labels[:40]
    shared = entropy(labels) + entropy(clusters) - entropy(labels * 10 + clusters)
    scores = agreement(labels, clusters)
    assert scores["ari"] == pytest.approx(ari(labels, clusters))
    assert scores["nmi"] == pytest.approx(2 * shared / (entropy(labels) + entropy(clusters)))
    assert scores["nmi_max"] == pytest.approx(shared / max(entropy(labels), entropy(clusters)))
    assert scores["nmi_max"] < scores["nmi"]


def test_seeds_give_clusterings_of_their_own() -> None:
    z = np.random.default_rng(2).normal(size=(80, 3))
    first, *rest = kmeans_partitions(z, 6, seed=0)
    assert any((first != other).any() for other in rest)
    np.testing.assert_array_equal(first, kmeans_partitions(z, 6, seed=0)[0])


def test_separate_groups_score_one() -> None:
    z, labels = blobs(300, 3, apart=60)
    scores = kmeans_scores(z, labels) | leiden_scores(z, labels)
    assert scores == pytest.approx(
        {"ari_kmeans": 1.0, "nmi_kmeans": 1.0, "ari_leiden": 1.0, "nmi_leiden": 1.0}
    )


def test_unrelated_labels_score_about_zero() -> None:
    z, labels = blobs(600, 3, apart=60)
    shuffled = np.random.default_rng(1).permutation(labels)
    scores = kmeans_scores(z, shuffled) | leiden_scores(z, shuffled)
    assert abs(scores["ari_kmeans"]) < 0.02
    assert abs(scores["ari_leiden"]) < 0.02


def test_kmeans_is_the_mean_of_three_seeds() -> None:
    z, labels = blobs(200, 4, apart=3)
    found = [KMeans(4, n_init=10, random_state=5 + s).fit_predict(z.astype("f4")) for s in range(3)]
    scores = kmeans_scores(z, labels, seed=5)
    assert scores["ari_kmeans"] == pytest.approx(
        np.mean([adjusted_rand_score(labels, c) for c in found])
    )
    assert scores["nmi_kmeans"] == pytest.approx(
        np.mean([normalized_mutual_info_score(labels, c) for c in found])
    )


def test_leiden_is_the_best_of_the_sweep() -> None:
    import scanpy as sc

    z, labels = blobs(240, 4, apart=5)
    graph = scanpy_graph(z)
    nmi = []
    for resolution in (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0):
        sc.tl.leiden(
            graph, resolution, random_state=0, flavor="igraph", n_iterations=2, directed=False
        )
        nmi.append(normalized_mutual_info_score(labels, graph.obs["leiden"]))
    assert len(set(nmi)) > 2
    assert leiden_scores(z, labels)["nmi_leiden"] == pytest.approx(max(nmi))


def test_names_serve_as_well_as_codes() -> None:
    z, labels = blobs(100, 2, apart=4)
    assert kmeans_scores(z, labels) == kmeans_scores(z, np.array(["T", "B"])[labels])


def test_collapsed_embedding_scores_zero() -> None:
    scores = kmeans_scores(np.ones((20, 3)), [0, 1] * 10)
    assert scores == {"ari_kmeans": 0.0, "nmi_kmeans": 0.0}


def test_cap_thins_the_cells() -> None:
    z, labels = blobs(100, 2, apart=60)
    z[:50] = 0.0  # half of the cells tell nothing
    assert kmeans_scores(z, labels, cap=40) != kmeans_scores(z, labels)


def test_unsuitable_input_is_refused() -> None:
    z, labels = blobs(20, 2, apart=5)
    with pytest.raises(InputError, match="only 'a'"):
        kmeans_scores(z, ["a"] * 20)
    with pytest.raises(InputError, match="19 labels for an embedding of 20"):
        leiden_scores(z, labels[:19])
    with pytest.raises(InputError, match="1 of 20 labels are missing"):
        kmeans_scores(z, [None, *labels[1:]])
    z[3, 1] = np.nan
    with pytest.raises(InputError, match="not finite in 1 of 20 cells, the first being cell 3"):
        kmeans_scores(z, labels)
    with pytest.raises(InputError, match="cells x dimensions"):
        kmeans_scores(z[:, 0], labels)


def test_nearest_are_the_nearest_others() -> None:
    z = np.random.default_rng(0).normal(size=(40, 3))
    squares = np.square(z[:, None] - z[None]).sum(-1)
    np.fill_diagonal(squares, np.inf)
    distances, others = nearest_others(z, 6)
    np.testing.assert_array_equal(others, squares.argsort(1)[:, :6])
    np.testing.assert_allclose(distances, np.sqrt(np.sort(squares, 1)[:, :6]))


def test_graph_is_scanpys_own() -> None:
    """Exact neighbours handed to scanpy give the graph it makes itself of few cells."""
    import scanpy as sc
    from anndata import AnnData

    z = np.random.default_rng(0).normal(size=(200, 5)).astype("f4")
    adata = AnnData(z)
    sc.pp.neighbors(adata, n_neighbors=15, use_rep="X")
    graph = scanpy_graph(z)
    assert abs(graph.obsp["connectivities"] - adata.obsp["connectivities"]).max() < 1e-6
    params = graph.uns["neighbors"]["params"]
    again = restore_graph(z, graph.obsp["connectivities"], graph.obsp["distances"], params)
    assert again.uns["neighbors"] == graph.uns["neighbors"]


def test_cells_of_a_group_lie_together_on_the_map() -> None:
    z, labels = blobs(200, 4, apart=20)
    graph = scanpy_graph(z)
    found = umap_layout(graph, seed=0)
    near = nearest_others(found, 10)[1]
    assert (labels[near] == labels[:, None]).mean() > 0.98
    # Neighbours of the embedding are near on the map: shares as of scanpy's map, .50 here.
    kept = [len(set(a) & set(b)) / 10 for a, b in zip(near, nearest_others(z, 10)[1], strict=True)]
    assert np.mean(kept) > 0.4
    np.testing.assert_array_equal(found, umap_layout(graph, seed=0))
    assert (found != umap_layout(graph, seed=1)).any()


def test_equal_cells_have_a_map() -> None:
    found = umap_layout(scanpy_graph(np.zeros((30, 1))), seed=0)
    assert np.isfinite(found).all() and len(np.unique(found, axis=0)) == 30


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_cells_have_a_graph(n: int) -> None:
    graph = scanpy_graph(np.arange(2.0 * n).reshape(n, 2))
    assert (graph.obsp["connectivities"].sum(1) > 0).all()


def test_many_cells_are_searched_approximately(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit faiss takes over, and finds nearly the same neighbours."""
    from concerto_tf.metrics import graph

    z = np.random.default_rng(0).normal(size=(1500, 4))
    exact = scanpy_graph(z).obsp["distances"] > 0
    monkeypatch.setattr(graph, "EXACT_CELLS", 1000)
    found = scanpy_graph(z).obsp["distances"] > 0
    assert 0.98 * exact.sum() < exact.multiply(found).sum() < exact.sum()
    assert found.sum() == exact.sum() and not found.diagonal().any()
