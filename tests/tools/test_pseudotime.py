"""Pseudotime on embeddings of a simulated path, of which the order is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf.errors import InputError
from concerto_tf.simulate import SplatParams, simulate_cells
from protocols.pseudotime import pseudotime

PCA = {"methods": ("pca",), "seeds": (0,)}


@pytest.fixture(scope="module")
def path() -> AnnData:
    """Cells along one path, in four stages; the names of which say nothing of their order."""
    cells = simulate_cells(
        SplatParams(n_cells=160, n_genes=120, paths=True, de_prob=0.6, de_scale=1.5, seed=2)
    )
    stage = np.minimum(3, cells.obs["step"].to_numpy() // 25)
    cells.obs["stage"] = np.array(["young", "boy", "man", "elder"])[stage]
    cells.obs["order"] = stage
    return cells


def test_order_is_found_and_correlated(path: AnnData, tmp_path: Path) -> None:
    cells = path.copy()
    cells.obs.loc[cells.obs_names[:4], "stage"] = np.nan
    result = pseudotime(cells, tmp_path / "out", label_key="stage", order_key="order", **PCA)
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    assert (tmp_path / "out" / "figure.png").exists()
    table = pd.read_csv(tmp_path / "out" / "table.tsv", sep="\t")
    assert result["root"] == "young"
    assert result["from_root"] == ["young", "boy", "man", "elder"]
    assert table["spearman_stage"][0] > 0.9 and table["spearman_root"][0] > 0.9
    assert table["reached"][0] == pytest.approx(156 / 160)
    # the other end, given as a cell: the order is the reverse, and the types' order with it
    last = cells.obs_names[int(np.argmax(cells.obs["step"]))]
    order = {"young": "0", "boy": "1", "elder": "3"}  # as the command line gives it
    back = pseudotime(cells, tmp_path / "b", label_key="stage", root=last, order=order, **PCA)
    assert back["methods"]["pca"]["spearman_stage"]["mean"] < -0.9
    assert back["methods"]["pca"]["spearman_root"]["mean"] > 0.9
    assert back["from_root"][0] == "elder"


def test_what_has_no_order_or_root_is_refused(path: AnnData, tmp_path: Path) -> None:
    for options, message in (
        ({}, "nothing says where to begin"),
        ({"root": "nobody"}, r"neither a cell nor a type of 'stage' \(there are: boy, elder"),
        ({"order_key": "stage"}, "column 'stage': a stage is not a number"),
        ({"order_key": "batch"}, "column 'batch': a stage is not a number"),
        ({"order": {"baby": 0}}, "no 'baby' to rank"),
        ({"order": {"boy": 0}}, "fewer than two stages"),
        ({"order_key": "order", "order": {"boy": 0}}, "given twice"),
        ({"order_key": "age"}, "'age'"),
    ):
        with pytest.raises(InputError, match=message):
            pseudotime(path, tmp_path / "out", label_key="stage", **options, **PCA)
