"""Labels by majority within groups of cells, for `annotate` and `map` alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from concerto_tf.errors import InputError
from concerto_tf.tasks.annotate import annotate
from concerto_tf.tasks.map import map
from concerto_tf.tasks.vote import add_vote, fine_clusters

NAMES = ("B", "NK", "T")


def told(folder: Path, command: str, query: Any, out: Path | None = None, **options: Any) -> Any:
    if command == "annotate":
        return annotate(folder / "typed", query, out, **options)
    keys = {"reference": folder / "records", "label_key": "type"}
    return map(folder / "model", query, out, **keys, **options)


def by_hand(table: pd.DataFrame, groups: np.ndarray) -> dict[str, tuple[str, float]]:
    """Label and share of each group, counted one by one."""
    found = {}
    for group in {g for g in groups if isinstance(g, str)}:
        own = table[[g == group for g in groups]]
        counts = own["label"].value_counts()
        best = counts[counts == counts.max()].index
        sure = {label: own["confidence"][own["label"] == label].sum() for label in best}
        found[group] = (max(sure, key=sure.get), counts.max() / len(own))
    return found


@pytest.mark.parametrize("command", ["annotate", "map"])
def test_groups_of_a_column_vote(typed_cells: Path, command: str, tmp_path: Path) -> None:
    query, out = anndata.read_h5ad(typed_cells / "query.h5ad"), tmp_path / "out.h5ad"
    plain = told(typed_cells, command, typed_cells / "query.h5ad")
    table = told(typed_cells, command, typed_cells / "query.h5ad", out, vote="plate")
    assert list(table.columns) == [*plain.columns, "vote", "vote_share"]
    pd.testing.assert_frame_equal(table[list(plain.columns)], plain)  # labels stay per cell
    want = by_hand(table, query.obs["plate"].to_numpy(object))
    for i, plate in enumerate(query.obs["plate"].to_numpy(object)):
        label, share = want.get(plate, (table["label"].iloc[i], np.nan))
        assert table["vote"].iloc[i] == label
        np.testing.assert_allclose(table["vote_share"].iloc[i], share)
    most = dict(zip(["plate0", "plate1", "plate2"], NAMES, strict=True))
    assert {plate: label for plate, (label, _) in want.items()} == most
    written = anndata.read_h5ad(out)
    assert written.obs["concerto_vote"].astype(str).tolist() == table["vote"].tolist()
    np.testing.assert_array_equal(written.obs["concerto_vote_share"], table["vote_share"])
    groups, rows = written.uns["concerto_vote"], table.attrs["vote"]
    assert list(groups.index) == [row["group"] for row in rows]
    assert groups["cells"].sum() == 298 and groups["cells"].is_monotonic_decreasing
    assert {row["group"]: (row["label"], row["share"]) for row in rows} == want
    # Probabilities of these types are near 0 or 1: what is expected is what the plates mix.
    wrong = [
        (query.obs["type"] != label)[query.obs["plate"] == plate].mean()
        for plate, label in most.items()
    ]
    np.testing.assert_allclose(groups["expected_error"].loc[list(most)], wrong, atol=0.12)
    assert json.loads(json.dumps(rows)) == rows and str(table)


@pytest.mark.parametrize("command", ["annotate", "map"])
def test_small_clusters_vote_where_no_column_is_named(
    typed_cells: Path, command: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.h5ad"
    table = told(typed_cells, command, typed_cells / "records", out, vote=True)
    written = anndata.read_h5ad(out)
    clusters = fine_clusters(written.obsm["X_concerto"])
    assert {row["group"] for row in table.attrs["vote"]} == set(clusters)
    for cluster, (label, share) in by_hand(table, clusters).items():
        own = table[clusters == cluster]
        assert (own["vote"] == label).all()
        np.testing.assert_allclose(own["vote_share"], share)
    right = written.obs["type"].astype(str).to_numpy()
    assert (table["vote"] == right).mean() >= (table["label"] == right).mean()


def test_unknown_votes_and_the_surer_label_wins_a_tie() -> None:
    table = pd.DataFrame(
        {
            "label": ["unknown", "unknown", "T", "T", "B", "B", "T", "B"],
            "confidence": [0.1, 0.1, 0.9, 0.3, 0.7, 0.6, 0.5, 0.5],
        },
        index=["same name"] * 8,
    )
    p = np.array([[0.4, 0.6]] * 2 + [[0.2, 0.8]] * 4 + [[0.5, 0.5]] * 2)
    groups = np.array(["a", "a", "a", "b", "b", None, "c", "c"], object)
    found = add_vote(table, groups, p, ["B", "T"])
    assert table["vote"].tolist() == [*["unknown"] * 3, "B", "B", "B", "B", "B"]
    share = [*[2 / 3] * 3, 0.5, 0.5, np.nan, 0.5, 0.5]
    np.testing.assert_allclose(table["vote_share"], share)
    # One minus the mean probability of the label that was voted, over all cells of the group.
    np.testing.assert_allclose(found["expected_error"], [np.nan, 0.8, 0.5])
    assert [row["expected_error"] for row in table.attrs["vote"]][0] is None


@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_clusters_of_a_tiny_query(n: int) -> None:
    z = np.random.default_rng(n).normal(size=(n, 4)).astype("f4")
    clusters = fine_clusters(z)
    assert len(clusters) == n and len(set(clusters)) <= max(1, n // 2)


def test_many_small_clusters_do_not_mix_types() -> None:
    kind = np.arange(600) % 6
    z = np.random.default_rng(0).normal(size=(600, 8)) + 6 * np.eye(8)[kind]
    clusters = fine_clusters(z.astype("f4"))
    sizes = pd.Series(clusters).value_counts()
    assert len(sizes) > 18 and sizes.median() > 5
    assert pd.crosstab(clusters, kind).gt(0).sum(axis=1).eq(1).all()


@pytest.mark.parametrize("command", ["annotate", "map"])
@pytest.mark.parametrize("query", ["query.h5ad", "records"])
def test_a_column_that_is_not_there(typed_cells: Path, command: str, query: str) -> None:
    with pytest.raises(InputError, match="'tissue'"):
        told(typed_cells, command, typed_cells / query, vote="tissue")


def test_a_vote_takes_labels(typed_cells: Path) -> None:
    with pytest.raises(InputError, match="name a label key"):
        map(typed_cells / "model", typed_cells / "query.h5ad", vote=True)


def test_of_levels_the_finest_is_voted_on(typed_cells: Path) -> None:
    table = map(
        typed_cells / "model",
        typed_cells / "query.h5ad",
        reference=typed_cells / "records",
        levels=("coarse", "type"),
        vote="plate",
    )
    assert set(table["vote"]) <= {*NAMES, "unknown"}
    assert [name for name in table if name.startswith("vote")] == ["vote", "vote_share"]
