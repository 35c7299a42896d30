"""The protocols of mapping and of imputation, on cells that are quick to learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf.errors import InputError
from protocols.imputation import imputation
from protocols.mapping import mapping, score

SIZES = {(kind, source): 40 for kind in "uvw" for source in "ab"} | {("x", "b"): 25}


def test_scores_by_hand() -> None:
    table = pd.DataFrame(
        {
            "label": ["u", "unknown", "v", "unknown", "u"],
            "predicted": ["u", "u", "v", "v", "u"],
            "confidence": [0.9, 0.2, 0.8, 0.1, 0.3],
        }
    )
    truth = np.array(["u", "u", "v", "x", "x"])
    found = score(truth, np.array([True, True, True, False, False]), table)
    assert found == {
        "known": 3,
        "unseen": 2,
        "accuracy": pytest.approx(2 / 3),
        "macro_f1": pytest.approx((2 / 3 + 1) / 2),
        "accuracy_unrejected": 1.0,
        "rejected_known": pytest.approx(1 / 3),
        "rejected_unseen": 0.5,
        "auroc": pytest.approx(5 / 6),
    }
    nothing_new = score(truth[:3], np.ones(3, bool), table[:3])
    assert np.isnan(nothing_new["auroc"]) and np.isnan(nothing_new["rejected_unseen"])


def test_a_source_is_mapped_onto_another(
    make_cells: Callable[..., AnnData], quick: dict, tmp_path: Path
) -> None:
    cells = make_cells(SIZES)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    result = mapping(
        tmp_path / "cells.h5ad",
        tmp_path / "out",
        label_key="kind",
        source_key="donor",
        reference_sources=["a"],
        absent=("u",),
        **{**quick, "epochs": 20},
    )
    table = pd.read_csv(tmp_path / "out" / "table.tsv", sep="\t")
    assert table["query"].tolist() == ["b"] and table["absent"].tolist() == ["u"]
    assert table["known"].tolist() == [80] and table["unseen"].tolist() == [65]
    assert all(float(value) > 0.8 for value in table["accuracy_unrejected"])
    assert all(float(value) > 0.8 for value in table["auroc"])
    assert json.loads((tmp_path / "out" / "result.json").read_text())["means"][0]["known"] == 80
    assert result["means"][0]["absent"] == "u"
    assert (tmp_path / "out" / "figure.png").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source_key": "batch"}, "no column 'batch'"),
        ({"label_key": "type"}, "no column 'type'"),
        ({"reference_sources": ["z"]}, "has no 'z'"),
        ({"reference_sources": ["a", "b"]}, "none is left to map"),
        ({"absent": ["z"]}, "no cells of type 'z'"),
        ({"ways": ["warm"]}, "no way 'warm'"),
    ],
    ids=str,
)
def test_what_the_user_can_mend_is_said(
    make_cells: Callable[..., AnnData], tmp_path: Path, given: dict, message: str
) -> None:
    asked = {"label_key": "kind", "source_key": "donor", **given}
    with pytest.raises(InputError, match=message):
        mapping(make_cells(SIZES), tmp_path / "out", **asked)


@pytest.mark.slow
def test_held_out_protein_is_imputed_beside_pca(
    make_cells: Callable[..., AnnData], quick: dict, tmp_path: Path
) -> None:
    cells = make_cells(SIZES)
    rng = np.random.default_rng(0)
    own = np.array([5, 60])[(cells.obs["kind"].to_numpy()[:, None] == ["u", "v", "w"]).astype(int)]
    cells.obsm["protein"] = pd.DataFrame(rng.poisson(own), cells.obs_names, ["CD3", "CD4", "CD8"])
    result = imputation(cells, tmp_path / "out", k=10, **quick)
    assert result["cells"] == {"train": 212, "test": 53}
    table = pd.read_csv(tmp_path / "out" / "table.tsv", sep="\t")
    assert table["feature"].tolist() == ["CD3", "CD4", "CD8"]
    assert (table[["concerto", "pca"]] > 0.5).all(axis=None)
    assert result["mean"]["pca"] == pytest.approx(table["pca"].mean(), abs=1e-5)
    with pytest.raises(InputError, match="share of 1.0"):
        imputation(cells, tmp_path / "out", train_share=1.0)
    with pytest.raises(InputError, match="'adt'"):
        imputation(cells, tmp_path / "out", modality="adt")
