"""Trials with what is no option of Concerto: their losses against NumPy, and the script."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from anndata import AnnData

from protocols.lines import read_lines

SCRIPT = Path(__file__).parents[2] / "tools" / "trials" / "levers.py"
GENES = [f"gene{i}" for i in range(10)]


@pytest.fixture(scope="module")
def levers() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT), run_name="levers")["LEVERS"]


@pytest.fixture(scope="module")
def views() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 12, 5))
    return tuple((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (a, b))


def reference(a: np.ndarray, b: np.ndarray, weight: np.ndarray, temperature: float) -> np.ndarray:
    """Decoupled loss of each cell whose negatives are weighed, one pair of cells at a time."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    loss = []
    for i in range(len(a)):
        terms = []
        for x, y in ((a, b), (b, a)):
            others = [j for j in range(len(a)) if j != i]
            total = sum(
                weight[j] * (np.exp(x[i] @ z[j] / temperature)) for j in others for z in (x, y)
            )
            terms.append(np.log(total) - x[i] @ y[i] / temperature)
        loss.append(np.mean(terms))
    return np.array(loss)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("concerto-decoupled", [0] * 3 + [1] * 9),
        ("concerto-balanced", [0] * 12),
        ("concerto-balanced", [0] * 3 + [1] * 9),
    ],
)
def test_losses_are_those_of_numpy(
    levers: dict[str, Any], views: tuple[np.ndarray, np.ndarray], name: str, source: list[int]
) -> None:
    model = levers[name](GENES, temperature=0.3)
    weight = np.ones(12)
    if name == "concerto-balanced":
        weight = 1 / np.bincount(source)[source]
        weight /= weight.mean()
    want = reference(*views, weight, 0.3) * weight
    a, b = map(tf.constant, views)
    np.testing.assert_allclose(model.loss_of(a, b, a, tf.constant(source)), want, rtol=1e-5)


@pytest.mark.slow
def test_the_script_trains_with_levers(make_cells: Callable[..., AnnData], tmp_path: Path) -> None:
    cells = make_cells({(kind, donor): 20 for kind in "uv" for donor in "ab"})
    cells.obs = cells.obs.rename(columns={"kind": "cell_type"})
    cells.write_h5ad(tmp_path / "small.h5ad")
    chosen = ["concerto-mutual-neighbours", "concerto-deep"]
    options = "components=4,epochs=1,genes=all,head_units=8,hidden_units=8,units=8"
    results = tmp_path / "levers.jsonl"
    subprocess.run(
        [
            sys.executable,
            SCRIPT,
            tmp_path / "small.h5ad",
            "--configurations",
            *(f"{name},{options}" for name in chosen),
            *"--source-key donor --seed 0 --results".split(),
            results,
            "--figure",
            tmp_path / "levers.png",
        ],
        check=True,
        capture_output=True,
    )
    rows = read_lines(results)
    assert [row["configuration"] for row in rows] == [f"{name},{options}" for name in chosen]
    assert rows[0]["command"].startswith("tools/trials/levers.py small.h5ad --configurations ")
    assert all(0 < row["knn_macro_f1"] <= 1 for row in rows)
