"""Where training is asked to beat the PCA initialization: tasks, rows, and what is said of them."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from protocols import few_labels
from protocols.delivered_parts import PROTEIN, Bench
from protocols.lines import read_lines
from protocols.quality_cells import LABEL, SOURCE, labelled_sets
from protocols.regime_cells import START, Place
from protocols.regimes import REGIMES, report

ROOT = Path(__file__).parents[2]


def tool(*arguments: object) -> int:
    """The return code of tools/quality --regimes."""
    path = ROOT / "tools" / "quality"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), "--regimes", *map(str, arguments)])
        return runpy.run_path(str(path))["main"]()


@pytest.fixture
def file(make_cells: Callable[..., AnnData], tmp_path: Path) -> Path:
    """Cells of three types, with proteins that follow the types."""
    cells = make_cells({(kind, "a"): 40 for kind in "tuv"})
    cells.obs = cells.obs.rename(columns={"kind": "cell_type"})
    of_type = cells.obs["cell_type"].astype("category").cat.codes.to_numpy()
    levels = np.random.default_rng(0).poisson(5 + 60 * np.eye(3)[of_type])
    cells.obsm[PROTEIN] = pd.DataFrame(levels, cells.obs_names, ["CD3", "CD19", "CD4"])
    cells.write_h5ad(tmp_path / "small.h5ad")
    return tmp_path / "small.h5ad"


def test_what_is_asked_of_cells(file: Path, tmp_path: Path) -> None:
    place = Place(Bench(labelled_sets([file])[0].cells(), 0, tmp_path), tmp_path)
    found = {name: regime.tasks(place) for name, regime in REGIMES.items()}
    assert found["depth"] == ["50% of the counts", "20% of the counts", "10% of the counts"]
    assert found["panel"] == []  # the cells have 40 genes
    assert found["labels"][0] == "1 a type" and found["bimodal"] == ["impute", "clusters"]
    del place.bench.cells.obsm[PROTEIN]
    assert REGIMES["bimodal"].tasks(place) == []


def test_each_source_is_left_out(make_cells: Callable[..., AnnData], tmp_path: Path) -> None:
    cells = make_cells({(kind, donor): 30 for kind in "tuv" for donor in "abc"})
    cells.obs = cells.obs.set_axis([LABEL, SOURCE], axis=1)
    place = Place(Bench(cells, 0, tmp_path), tmp_path)
    regime = REGIMES["source"]
    assert regime.tasks(place) == ["without a", "without b", "without c"]
    apart = place.leaving_out("b")
    assert set(apart.query.obs_names) == set(cells.obs_names[cells.obs[SOURCE] == "b"])
    assert list(apart.records().sources) == ["a", "c"]
    for method in ("PCA", "logistic regression"):
        found = regime.answer(place, "without b", method)
        assert min(found.values()) > 0.9
    del cells.obs[SOURCE]
    assert regime.tasks(place) == []


@pytest.mark.slow
def test_a_table_with_the_start_as_a_row_of_its_own(file: Path, tmp_path: Path) -> None:
    trained = "concerto,batch_size=32,components=4,epochs=1,hidden_units=8,units=8"
    asked = ["depth", "bimodal", "--data", file, "--trained", trained, "--seeds", 0]
    assert tool(*asked, "-o", tmp_path / "table.md") == 0
    rows = read_lines(tmp_path / "table.jsonl")
    assert len(rows) == 3 * 5 + 2 * 4
    table = pd.DataFrame(rows).set_index(["method", "task"])
    # Types have genes of their own, and nothing was trained in either.
    assert table.loc[(START, "50% of the counts"), "f1"] > 0.9
    assert table.loc[(START, "impute"), "r"] > 0.7  # .79 here, of 60 cells
    pd.testing.assert_series_equal(
        table.loc[START, "f1"], table.loc["concerto", "f1"], check_names=False
    )
    assert tool(*asked, "-o", tmp_path / "table.md", "--report") == 0
    assert len(read_lines(tmp_path / "table.jsonl")) == len(rows)


@pytest.mark.parametrize(
    "method",
    [
        "logistic regression",
        few_labels.KNN,
        *(pytest.param(name, marks=pytest.mark.slow) for name in few_labels.FINETUNED),
    ],
)
def test_few_labels_tell_types_that_have_genes_of_their_own(
    file: Path, tmp_path: Path, method: str
) -> None:
    place = Place(Bench(labelled_sets([file])[0].cells(), 0, tmp_path), tmp_path)
    assert method in REGIMES["labels"].peers
    assert few_labels.tasks(place)[1] == "3 a type"
    assert few_labels.answer(place, "3 a type", method)["f1"] > 0.9


def test_training_beats_the_start_where_it_does_with_every_seed() -> None:
    def row(seed: int, task: str, method: str, f1: float) -> dict[str, Any]:
        return {"regime": "depth", "data": "set", "seed": seed, "task": task, "method": method} | {
            "f1": f1
        }

    rows = [row(seed, task, START, 0.5) for seed in (0, 1) for task in ("a", "b")]
    rows += [row(0, "a", "trained", 0.6), row(1, "a", "trained", 0.52)]
    rows += [row(0, "b", "trained", 0.6), row(1, "b", "trained", 0.45)]
    made = report(rows)
    assert "| set, a | .50 | .56 |" in made
    assert "trained less start only: +0.042 on average" in made
    assert "in 1 of 2 (set, a), behind in 0." in made
