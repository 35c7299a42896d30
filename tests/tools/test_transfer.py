"""Labels carried to a source that was left out, and to another species, on small data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf.errors import InputError
from protocols.transfer import OURS, PEERS, transfer

SIZES = {(kind, source): 40 for kind in "uvw" for source in "ab"} | {("x", "b"): 25}


@pytest.mark.parametrize("methods", [PEERS, pytest.param(OURS, marks=pytest.mark.slow)])
def test_each_source_is_left_out(
    make_cells: Callable[..., AnnData], quick: dict, tmp_path: Path, methods: tuple[str, ...]
) -> None:
    result = transfer(
        make_cells(SIZES),
        tmp_path,
        label_key="kind",
        source_key="donor",
        methods=methods,
        training=quick,
        finetuning={"epochs": 10, "batch_size": 32, "learning_rate": 0.02},
    )
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert set(result["transfers"]) == {"a to b", "b to a"}
    for found in result["transfers"].values():
        assert set(found) == set(methods)
    for method, found in result["mean"].items():
        assert found["accuracy"] > 0.8, method
    table = pd.read_csv(tmp_path / "table.tsv", sep="\t").set_index(["transfer", "method"])
    # Only b has x, which peers cannot call unknown.
    assert table.loc["b to a", "unknown_unseen"].isna().all()
    if methods == PEERS:
        assert (table.loc["a to b", "unknown_unseen"] == 0).all()
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_genes_of_another_species_are_translated(
    make_cells: Callable[..., AnnData], tmp_path: Path
) -> None:
    mouse, human = (make_cells({(kind, "a"): 40 for kind in "uvw"}, seed) for seed in (0, 1))
    table = [f"{name},{name.capitalize()}" for name in human.var_names]
    (tmp_path / "orthologs.csv").write_text("\n".join(["human,mouse", *table[:30]]))
    mouse.var_names = [name.capitalize() for name in mouse.var_names]
    with pytest.raises(InputError, match="gene"):
        transfer(mouse, tmp_path / "no", query=human, label_key="kind", methods=["knn"])
    result = transfer(
        mouse,
        tmp_path / "out",
        query=human,
        orthologs=tmp_path / "orthologs.csv",
        label_key="kind",
        methods=["logistic"],
    )
    assert result["transfers"]["reference to query"]["logistic"]["accuracy"] > 0.9


def test_what_is_unsuitable_is_said(make_cells: Callable[..., AnnData], tmp_path: Path) -> None:
    cells = make_cells({(kind, "a"): 10 for kind in "uv"})
    for wrong, said in (
        ({"source_key": "donor"}, "one source only"),
        ({"source_key": "plate"}, "no column 'plate'"),
        ({"source_key": "donor", "methods": ["svm"]}, "choose of map"),
    ):
        with pytest.raises(InputError, match=said):
            transfer(cells, tmp_path / "out", label_key="kind", **wrong)
