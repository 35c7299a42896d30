"""The table of metrics."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from concerto_tf.errors import InputError
from concerto_tf.metrics import (
    asw_source,
    bras,
    cilisi,
    embedding_scores,
    ilisi,
    isolated_labels,
    kbet,
    knn_scores,
)

LABEL_KEYS = {
    "ari_kmeans",
    "nmi_kmeans",
    "ari_leiden",
    "nmi_leiden",
    "asw_label",
    "knn_accuracy",
    "knn_macro_f1",
}
SOURCE_KEYS = {"asw_source", "kbet", "ilisi"}
BOTH_KEYS = {"cilisi", "bras", "isolated_labels", "graph_connectivity"}


@pytest.fixture(scope="module")
def cells() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels, sources = rng.integers(0, 3, 150), rng.integers(0, 2, 150)
    return rng.normal(size=(150, 6)) + 3 * np.eye(6)[labels], labels, sources


def test_exactly_the_keys_that_apply(cells: tuple) -> None:
    z, labels, sources = cells
    assert set(embedding_scores(z)) == set()
    assert set(embedding_scores(z, labels)) == LABEL_KEYS
    assert set(embedding_scores(z, sources=sources)) == SOURCE_KEYS
    scores = embedding_scores(z, labels, sources)
    assert set(scores) == LABEL_KEYS | SOURCE_KEYS | BOTH_KEYS
    assert all(type(v) is float and np.isfinite(v) for v in scores.values())
    assert set(embedding_scores(z, labels, np.zeros(150))) == LABEL_KEYS


def test_values_are_those_of_the_metrics(cells: tuple) -> None:
    z, labels, sources = cells
    scores = embedding_scores(z, labels, sources, seed=2)
    assert scores["kbet"] == kbet(z, sources, labels, seed=2)
    assert scores["cilisi"] == cilisi(z, sources, labels, seed=2)
    assert scores["bras"] == bras(z, sources, labels, seed=2)
    assert scores["isolated_labels"] == isolated_labels(z, sources, labels, seed=2)
    assert scores["ilisi"] == ilisi(z, sources, seed=2)
    assert scores["asw_source"] == asw_source(z, sources, labels, seed=2)
    assert scores["knn_accuracy"] == knn_scores(z, labels, seed=2)["knn_accuracy"]


def test_cells_without_a_label_are_left_out(cells: tuple) -> None:
    z, labels, sources = cells
    named = pd.Series(np.array(["a", "b", "c"])[labels], dtype="category")
    named[:20] = np.nan
    scores = embedding_scores(z, named, sources)
    alone = embedding_scores(z[20:], labels[20:], sources[20:])
    for key in LABEL_KEYS | BOTH_KEYS | {"asw_source", "kbet"}:
        assert scores[key] == alone[key], key
    assert scores["ilisi"] == ilisi(z, sources)  # what needs no label looks at every cell


def test_cells_without_a_source_are_left_out(cells: tuple) -> None:
    z, _, sources = cells
    partly = [None, *sources[1:]]
    assert embedding_scores(z, sources=partly) == embedding_scores(z[1:], sources=sources[1:])


def test_scores_that_are_not_defined_are_left_out(cells: tuple) -> None:
    z, labels, _ = cells
    assert "asw_label" not in embedding_scores(z[:6], np.arange(6))
    assert "knn_accuracy" not in embedding_scores(z[:6], [0, 0, 0, 1, 1, 1])
    assert not {"asw_source", "kbet", "bras"} & set(embedding_scores(z, labels, labels))


def test_two_cells(cells: tuple) -> None:
    scores = embedding_scores(cells[0][:2], ["a", "b"], ["x", "y"])
    assert scores["ari_kmeans"] == 1.0
    assert "kbet" not in scores


def test_one_class_is_refused(cells: tuple) -> None:
    z = cells[0]
    with pytest.raises(InputError, match="only 'T': at least 2"):
        embedding_scores(z, ["T"] * 149 + [None])
    with pytest.raises(InputError, match="the labels have none"):
        embedding_scores(z, [None] * 150)
    with pytest.raises(InputError, match="3 sources for an embedding of 150 cells"):
        embedding_scores(z, sources=[1, 2, 3])


def test_the_benchmarks_measure(cells: tuple, shared_data) -> None:
    """The values are those of the shared benchmark's own code, where there is one."""
    path = shared_data.parent / "bench" / "evaluate.py"
    if not path.exists():
        pytest.skip("no benchmark beside the data")
    import importlib.util

    spec = importlib.util.spec_from_file_location("bench_evaluate", path)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    z, labels, _ = cells
    z = z.astype("f4")
    theirs = bench.clustering(z, labels.astype(str)) | bench.separation(z, labels.astype(str))
    ours = embedding_scores(z, labels.astype(str))
    for key, other in {
        "ari_kmeans": "kmeans_ari",
        "nmi_kmeans": "kmeans_nmi",
        "ari_leiden": "leiden_best_ari",
        "nmi_leiden": "leiden_best_nmi",
        "asw_label": "asw_label",
        "knn_accuracy": "knn_acc",
        "knn_macro_f1": "knn_f1",
    }.items():
        assert ours[key] == pytest.approx(theirs[other], abs=1e-6), key
