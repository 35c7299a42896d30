"""Ways to one clustering from several, and the communities of the co-association."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import igraph
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf.errors import InputError
from concerto_tf.metrics.consensus import co_association
from protocols.consensus import communities, consensus

WAYS = ("one", "consensus", "communities")


def test_communities_are_those_of_the_graph_of_all_cells() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 20)
    runs = [np.where(rng.random(60) < 0.15, rng.integers(0, 3, 60), truth) for _ in range(5)]
    labels = np.stack(runs, axis=1)
    weight = np.concatenate([rows for _, rows in co_association(labels)]).astype(float)
    np.fill_diagonal(weight, 0)
    graph = igraph.Graph.Weighted_Adjacency(weight, mode="undirected")
    best = graph.community_multilevel(weights="weight")
    found = communities(labels)
    assert len(np.unique(found)) == 3
    assert graph.modularity(found.tolist(), weights="weight") == pytest.approx(best.modularity)


@pytest.mark.slow
def test_consensus_leaves_table_result_and_figure(
    make_cells: Callable[..., AnnData], quick: dict, tmp_path: Path
) -> None:
    cells = make_cells({(kind, "a"): 40 for kind in "uvw"})
    result = consensus(
        [cells], tmp_path, label_key="kind", method="concerto", models=2, runs=3, **quick
    )
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert set(result["mean"]) == {
        "joined",
        *(
            f"{of}: {way}"
            for of in ("models", "runs")
            for way in ("one", "consensus", "communities")
        ),
    }
    assert result["mean"]["models: communities"]["ari"]["mean"] > 0.8
    assert len(pd.read_csv(tmp_path / "table.tsv", sep="\t")) == 7
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_what_is_unsuitable_is_said(make_cells: Callable[..., AnnData], tmp_path: Path) -> None:
    cells = make_cells({(kind, "a"): 10 for kind in "uv"})
    with pytest.raises(InputError, match="models: 1 is not"):
        consensus([cells], tmp_path, label_key="kind", models=1)
    with pytest.raises(InputError, match="ensemble is set by the protocol"):
        consensus([cells], tmp_path, label_key="kind", ensemble=3)
