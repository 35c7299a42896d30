"""Cross-validated annotation, and rejection of types taken out, on small data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.metrics import f1_score

from concerto_tf.errors import InputError
from protocols.annotation import MEASURES, annotation, scores
from protocols.rejection import rejection

TRAINING: dict[str, Any] = {
    "genes": "all",
    "epochs": 4,
    "batch_size": 50,
    "options": {
        "units": 8,
        "hidden_units": 16,
        "attention_units": 4,
        "head_units": 6,
        "components": 5,
    },
}
FINETUNING: dict[str, Any] = {"epochs": 15, "batch_size": 50, "learning_rate": 0.02}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four types, one of them with three cells; cells without a label; two donors."""
    rng = np.random.default_rng(0)
    kind = rng.choice(4, 260, p=[0.4, 0.35, 0.24, 0.01])
    kind[:3], kind[3:] = 3, np.minimum(kind[3:], 2)
    profiles = rng.gamma(0.4, 3.0, (4, 40))
    counts = rng.poisson(profiles[kind] * 2)
    counts[:, 0] += 1
    cells = AnnData(counts.astype("float32"))
    cells.obs_names = [f"c{i}" for i in range(260)]
    cells.var_names = [f"AB{i}C" for i in range(40)]
    names = np.array(["B", "NK", "T", "rare"], object)[kind]
    names[100:104] = None
    cells.obs["type"] = pd.Categorical(names)
    cells.obs["donor"] = np.where(np.arange(260) % 2, "x", "y")
    path = tmp_path_factory.mktemp("data") / "small.h5ad"
    cells.write_h5ad(path)
    return path


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, told = rng.integers(0, 4, 80), rng.integers(0, 5, 80)
    f1 = f1_score(truth, told, average=None)[:4]
    want = {"accuracy": np.mean(truth == told), "macro_f1": f1.mean(), "median_f1": np.median(f1)}
    assert scores(truth, told) == pytest.approx(want)


@pytest.mark.slow
@pytest.mark.parametrize(
    "methods",
    [
        ["concerto", "genes", "logistic", "knn"],
        pytest.param(["end_to_end", "logistic"], marks=pytest.mark.slow),
    ],
)
def test_annotation_leaves_table_result_and_figure(
    cells: Path, tmp_path: Path, methods: list[str]
) -> None:
    result = annotation(
        [cells],
        tmp_path,
        label_key="type",
        source_key="donor",
        folds=5,
        most_folds=1,
        methods=methods,
        training=TRAINING,
        finetuning=FINETUNING,
    )
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert result["left_out"] == {"small": ["rare"]}
    table = pd.read_csv(tmp_path / "table.tsv", sep="\t")
    assert list(table["method"]) == methods
    for method in table["method"]:
        row = table[table["method"] == method][list(MEASURES)].mean()
        assert result["data"]["small"][method]["accuracy"] == pytest.approx(row["accuracy"])
        assert row["accuracy"] > 0.8, method
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_rejection_leaves_table_result_and_figure(cells: Path, tmp_path: Path) -> None:
    result = rejection(
        cells,
        tmp_path,
        label_key="type",
        groups=[["T"]],
        leave_out=["rare"],
        source_key="donor",
        alpha=0.1,
        training=TRAINING,
        finetuning=FINETUNING,
    )
    assert json.loads((tmp_path / "result.json").read_text()) == result
    found = result["unseen"]["T"]
    assert found["auroc"] > 0.9 and found["rejected_unseen"] > 0.5
    assert found["rejected_seen"] < 0.3 and found["accuracy"] > 0.8
    table = pd.read_csv(tmp_path / "table.tsv", sep="\t")
    assert table["cells_unseen"][0] == (pd.Series(_labels(cells)) == "T").sum()
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


def _labels(path: Path) -> list[str]:
    import anndata

    return anndata.io.read_h5ad(path).obs["type"].astype(object).tolist()


def test_unsuitable_arguments_are_refused(cells: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'type'.*donor|no column|kind"):
        annotation([cells], tmp_path, label_key="kind")
    with pytest.raises(InputError, match="choose among concerto, genes, end_to_end, logistic, knn"):
        annotation([cells], tmp_path, label_key="type", methods=["svm"])
    with pytest.raises(InputError, match="fewer than two types with 200 cells"):
        annotation([cells], tmp_path, label_key="type", folds=200)
    for groups in ([["X"]], [[]], [["B", "NK", "T"]]):
        with pytest.raises(InputError, match="name types that are there, and leave two"):
            rejection(cells, tmp_path, label_key="type", groups=groups)
    with pytest.raises(InputError, match="test is 1"):
        rejection(cells, tmp_path, label_key="type", test=1.0)
    assert not (tmp_path / "result.json").exists()
