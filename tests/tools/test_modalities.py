"""Modalities alone and together, called as `tools/reproduce` calls it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf.errors import InputError
from protocols.bimodal import METHODS, bimodal

PROTOCOLS = Path(__file__).parents[2] / "tools" / "protocols"
SMALL = {"units": 8, "hidden_units": 16, "attention_units": 4, "head_units": 8, "components": 4}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells of four types; RNA tells two pairs of them apart, protein the types within a pair."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 4, 160)
    profiles = rng.gamma(1.0, 2.0, (2, 60))
    cells = AnnData(rng.poisson(profiles[kind // 2] + 0.1).astype("float32"))
    cells.obs_names = [f"cell{i}" for i in range(160)]
    cells.obs["type"] = [f"type{k}" for k in kind]
    levels = np.stack([kind % 2 * 60, (1 - kind % 2) * 60, np.full(160, 30)], axis=1) + 5
    cells.obsm["protein"] = pd.DataFrame(
        rng.poisson(levels), cells.obs_names, ["CD3", "CD19", "IgG"]
    )
    path = tmp_path_factory.mktemp("paired") / "cells.h5ad"
    cells.write_h5ad(path)
    return path


@pytest.mark.slow
def test_both_modalities_tell_what_neither_does_alone(
    file: Path, tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    code = tool(
        "reproduce",
        "modalities",
        file,
        "-o",
        out,
        "--modalities",
        "protein=obsm:protein",
        "--label-key",
        "type",
        "--seeds",
        "0",
        "--set",
        "epochs=30",
        "--set",
        f"options={json.dumps(SMALL)}",
    )
    assert code == 0
    result = json.loads((out / "result.json").read_text())
    assert json.loads(capsys.readouterr().out) == result
    scores = {name: of["knn_accuracy"] for name, of in result["mean"].items()}
    assert set(scores) == {"rna", "protein", "rna+protein"}
    assert scores["rna+protein"] > 0.9 > 0.7 > max(scores["rna"], scores["protein"])
    assert (out / "figure.png").stat().st_size > 0
    assert len(pd.read_csv(out / "table.tsv", sep="\t")) == 3


@pytest.mark.slow
def test_both_modalities_annotate_what_neither_does_alone(file: Path, tmp_path: Path) -> None:
    result = bimodal(
        file,
        tmp_path,
        label_key="type",
        most_cells=150,
        training={"epochs": 30, "options": SMALL},
        finetuning={"epochs": 30, "learning_rate": 0.02},
    )
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert result["cells"] == 150
    for method in METHODS:
        of = {name: found[method]["accuracy"] for name, found in result["mean"].items()}
        assert set(of) == {"rna", "protein", "rna+protein"}
        assert of["rna+protein"] > max(of["rna"], of["protein"]) + 0.1, method
    assert len(pd.read_csv(tmp_path / "table.tsv", sep="\t")) == 9
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_a_modality_that_is_not_there_is_said(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no modality 'adt' in obsm; there are: protein"):
        bimodal(file, tmp_path, label_key="type", key="adt")


def test_what_is_wrong_is_said_in_a_line(
    file: Path, tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code = tool(
        "reproduce",
        "modalities",
        file,
        "-o",
        tmp_path / "out",
        "--label-key",
        "type",
        "--modalities",
        "adt=obsm:none",
    )
    said = capsys.readouterr().err
    assert code == 2 and said.startswith("reproduce: ") and "none" in said
    with pytest.raises(SystemExit):
        tool("reproduce", "--help")
    told = capsys.readouterr().out
    for path in PROTOCOLS.glob("*.py"):
        if re.search(rf"^def {path.stem}\((?s:[^)]*)\bout: str", path.read_text(), re.MULTILINE):
            assert f"\n    {path.stem.replace('_', '-')}" in told
