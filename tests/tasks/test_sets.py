"""Sets of cell types with a stated coverage, for `annotate` and `map` alike."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from concerto_tf.models import load_model
from concerto_tf.novelty import Calibration
from concerto_tf.reference.cells import Labels, Reference
from concerto_tf.reference.files import load_reference, save_reference
from concerto_tf.reference.levels import label_levels
from concerto_tf.tasks.annotate import annotate
from concerto_tf.tasks.map import map
from concerto_tf.tasks.sets import add_sets

NAMES = ("common", "near", "rare", "far")


def told(folder: Path, command: str, out: Path | None = None, **options: Any) -> pd.DataFrame:
    query = folder / "query.h5ad"
    if command == "annotate":
        return annotate(folder / "typed", query, out, **options)
    of = {"reference": folder / "records", "label_key": "type"}
    return map(folder / "model", query, out, **of, **options)


@pytest.mark.parametrize("command", ["annotate", "map"])
def test_sets_hold_the_type_of_as_many_cells_as_is_said(
    typed_cells: Path, command: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "concerto_tf")
    table = told(typed_cells, command, tmp_path / "out.h5ad", alpha=0.2)
    written = anndata.read_h5ad(tmp_path / "out.h5ad")
    sets = written.obs["concerto_set"].astype(str)
    assert sets.tolist() == table["set"].tolist()
    unknown = (table["label"] == "unknown").to_numpy()
    assert ((table["set"] == "") == unknown).all() and unknown.any()
    parts = [text.split("|") for text in table["set"][~unknown]]
    truth, predicted = (x[~unknown] for x in (written.obs["type"], table["predicted"]))
    assert all(label in part for label, part in zip(predicted, parts, strict=True))
    covered = [label in part for label, part in zip(truth, parts, strict=True)]
    # 48 cells were held out for `annotate`. Fails by chance in 1 of 1,000.
    assert sum(covered) >= stats.betabinom(len(parts), 40, 9).ppf(0.001)
    size = np.mean([len(part) for part in parts])
    assert table.attrs["sets"] == {"coverage": 0.8, "mean_size": pytest.approx(size, abs=1e-3)}
    assert f"80% have theirs in it; {size:.2f} types on average" in caplog.text


def make_reference(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Types that overlap, of which one is twenty times as frequent as another."""
    rng = np.random.default_rng(seed)
    code = rng.choice(4, n, p=[0.62, 0.3, 0.03, 0.05]).astype(np.int32)
    middle = np.array([[3, 0, 0, 1], [3, 1.2, 0, 0], [3, 0.8, 0.9, 0], [0, 0, 4, 0]])
    return middle[code] + rng.normal(0, 0.5, (n, 4)), code


@pytest.mark.parametrize("coverage", [0.9, 0.95])
def test_coverage_of_neighbours_votes(tmp_path: Path, coverage: float) -> None:
    """Of reference and query alike the stated share is covered; fails by chance in 1 of 1,000.

    Cells of a common type stand for more of their kind: 500 of each label are looked at.
    """
    z, code = make_reference(4000, 0)
    query, truth = make_reference(3000, 1)
    save_reference(Reference(z, {"type": Labels(code, NAMES)}), tmp_path / "reference")
    reference = load_reference(tmp_path / "reference")
    found, finest = label_levels(reference, query, ["type"], 5, 0.0)
    table = found["type"]
    add_sets(table, finest.shares, finest.names, finest.known, 1 - coverage)
    covered = [NAMES[own] in text.split("|") for own, text in zip(truth, table["set"], strict=True)]
    # Weights make the 1,250 cells that were looked at worth some 800.
    j = round(800 * (1 - coverage))
    low, high = stats.betabinom(3000, 801 - j, j).ppf([0.0005, 0.9995])
    assert low <= sum(covered) <= high
    assert 1 < table.attrs["sets"]["mean_size"] < 2.5
    save_reference(reference, tmp_path / "calibrated")
    again = label_levels(load_reference(tmp_path / "calibrated"), query, ["type"], 5, 0.0)[1].known
    for one, other in zip(again, finest.known, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_keeps_what_its_sets_rest_on(typed_cells: Path) -> None:
    model = load_model(typed_cells / "typed")
    assert len(model.nonconformity) == len(model.calibration) == 48
    assert list(model.nonconformity) == sorted(model.nonconformity)
    # Most held-out cells are told right, and nothing is more probable than their type.
    assert model.nonconformity[24] == 0 and 0 <= model.nonconformity[-1] <= 1


def test_where_too_few_are_known_no_type_is_excluded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "concerto_tf")
    table = pd.DataFrame({"label": ["B", "unknown"], "predicted": ["B", "B"]})
    p = np.array([[0.1, 0.9, 0.0], [0.2, 0.8, 0.0]])
    add_sets(table, p, ["T", "B", "NK"], Calibration(np.zeros(5), 5), 0.05)
    assert table["set"].tolist() == ["B|T|NK", ""]
    assert "sets hold all" in caplog.text


def test_levels_have_sets_of_the_finest(typed_cells: Path) -> None:
    query, of = typed_cells / "query.h5ad", {"reference": typed_cells / "records"}
    plain = map(typed_cells / "model", query, label_key="type", alpha=0.3, **of)
    table = map(typed_cells / "model", query, levels=["coarse", "type"], alpha=0.3, **of)
    assert [name for name in table if name.startswith("set")] == ["set"]
    both = (plain["label"] == table["label"]) & (plain["predicted"] == table["predicted"])
    assert both.mean() > 0.5 and (plain["set"] == table["set"])[both].all()
