"""Annotation along the simulated ladders of Concerto's robustness analysis."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from concerto_tf.errors import InputError
from protocols.annotated_ladders import annotated_ladders

QUICK = {"n_cells": 250, "n_genes": 300, "methods": ("logistic", "knn"), "seeds": (0, 1)}


def test_accuracy_falls_with_weaker_differences_and_more_dropout(tmp_path: Path) -> None:
    found = annotated_ladders(
        tmp_path, de_scales=(0.05, 0.8), dropout_mids=(-0.5, 3.0), most_folds=2, **QUICK
    )
    assert json.loads((tmp_path / "result.json").read_text()) == found
    assert (tmp_path / "figure.png").read_bytes()[1:4] == b"PNG"
    table = pd.read_csv(tmp_path / "table.tsv", sep="\t")
    assert len(table) == 4 * 2 * 2
    scales, mids = found["ladders"]["de_scale"], found["ladders"]["dropout_mid"]
    for method in ("logistic", "knn"):
        weak, strong = (scales[level][method]["accuracy"]["mean"] for level in ("0.05", "0.8"))
        assert strong > weak + 0.2 and weak < 0.6
    few, many = (mids[level]["logistic"]["accuracy"]["mean"] for level in ("-0.5", "3"))
    assert few > many, "a mid of 3 loses far more counts"


def test_nothing_to_do_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no ladder is left"):
        annotated_ladders(tmp_path, de_scales=(), dropout_mids=())
