"""Coarse labels, where fine ones cannot be told."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf.errors import InputError
from concerto_tf.models import load_model
from concerto_tf.models.fingerprint import fingerprint
from concerto_tf.records import convert
from concerto_tf.tasks.annotate import annotate
from concerto_tf.tasks.finetune import finetune
from concerto_tf.tasks.inspect import inspect
from concerto_tf.tasks.map import map
from concerto_tf.tasks.train import train

N_GENES = 60
GROUPS = {"B": "B", "CD4": "T", "CD8": "T", "NKT": "T", "noise": "unknown"}


def make_cells(kinds: list[str], seed: int) -> AnnData:
    """B cells, three types of T cells that differ in few genes, and cells that are none."""
    rng = np.random.default_rng(seed)
    fixed = np.random.default_rng(5)
    b, t = fixed.gamma(0.4, 3.0, (2, N_GENES))
    profiles = {"B": b, "noise": fixed.gamma(0.4, 3.0, N_GENES)}
    for i, name in enumerate(("CD4", "CD8", "NKT")):
        profiles[name] = t.copy()
        profiles[name][6 * i : 6 * i + 6] += 6
    counts = rng.poisson(np.stack([profiles[kind] for kind in kinds]) * 2)
    counts[:, 0] += 1
    obs = pd.DataFrame({"fine": kinds, "lineage": [GROUPS[kind] for kind in kinds]})
    obs.index = [f"cell{i}" for i in range(len(kinds))]
    return AnnData(
        counts.astype("f4"), obs, pd.DataFrame(index=[f"AB{i}C" for i in range(N_GENES)])
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records without NKT, a model of two levels, and a query with it."""
    folder = tmp_path_factory.mktemp("coarse")
    cells = make_cells(["B", "CD4", "CD8"] * 100, 0)
    cells.obs.loc["cell0", "lineage"] = None
    cells.obs["broken"] = np.where(np.arange(300) < 20, "x", "y")
    records = convert(cells, folder / "records", label_keys=["fine", "lineage", "broken"])
    small = {"units": 8, "hidden_units": 16, "attention_units": 4, "head_units": 6, "components": 5}
    train(records, folder / "model", genes="all", epochs=5, batch_size=50, options=small)
    options = {"epochs": 20, "batch_size": 50, "learning_rate": 0.01}
    finetune(folder / "model", records, folder / "typed", levels=["lineage", "fine"], **options)
    query = make_cells(["B", "CD4", "CD8", "NKT", "noise"] * 60, 1)
    query.write_h5ad(folder / "query.h5ad")
    return folder


def test_a_new_type_of_a_known_group_has_its_coarse_label(folder: Path, tmp_path: Path) -> None:
    table = annotate(folder / "typed", folder / "query.h5ad", tmp_path / "out.h5ad")
    query = anndata.read_h5ad(folder / "query.h5ad").obs.astype(str)
    share = (table["label_coarse"] == query["lineage"]).groupby(query["fine"]).mean()
    unknown = (table["label"] == "unknown").groupby(query["fine"]).mean()
    assert unknown["NKT"] > 0.5 and share["NKT"] > 0.5
    assert share[["B", "CD4", "CD8"]].min() > 0.9 and share["noise"] > 0.9
    # Whoever has a type is of its group, and surer of that than of the type.
    known = table["label"] != "unknown"
    assert (table["label"][known].replace(GROUPS) == table["label_coarse"][known]).all()
    assert (table["confidence_coarse"] >= table["confidence"] - 1e-6).all()
    written = anndata.read_h5ad(tmp_path / "out.h5ad").obs
    assert list(written["concerto_label_coarse"]) == list(table["label_coarse"])


def test_groups_are_kept_with_the_model(folder: Path) -> None:
    model = load_model(folder / "typed")
    assert model.coarse.names == ("B", "T") and model.coarse.of_type == (0, 1, 1)
    assert inspect(folder / "typed")["labels_coarse"] == ["B", "T"]
    assert json.loads((folder / "typed" / "training.json").read_text())["asked"]["coarse_key"]
    before = fingerprint(model)
    model.coarse = None
    assert fingerprint(model) != before


def test_both_sides_are_stated_where_labels_are_told(folder: Path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        table = annotate(folder / "typed", folder / "query.h5ad")
    told = table.attrs["expected"]
    assert told == inspect(folder / "typed")["expected"]
    assert "of known cells about" in caplog.text and "of cells of a type left out" in caplog.text
    said = json.loads((folder / "typed" / "training.json").read_text())["calibration"]
    assert said["new_caught_by_type"] == told["by_type"] and set(told["by_type"]) == {
        "B",
        "CD4",
        "CD8",
    }
    query = anndata.read_h5ad(folder / "query.h5ad").obs.astype(str)
    unknown = (table["label"] == "unknown").groupby(query["fine"]).mean()
    assert abs(unknown[["B", "CD4", "CD8"]].mean() - told["known_lost"]) < 0.06
    assert told["by_type"]["B"] > 0.9


def test_map_tells_the_coarsest_level_by_that_name_too(folder: Path) -> None:
    query, levels = folder / "query.h5ad", ["lineage", "fine"]
    table = map(folder / "model", query, reference=folder / "records", levels=levels)
    assert list(table["label_coarse"]) == list(table["label_lineage"])
    assert {"B", "T"} < set(table["label_coarse"]) and list(table["label"]) == list(
        table["label_fine"]
    )


def test_levels_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    for options, message in [
        ({}, "which labels are to be learned"),
        ({"levels": ["broken", "fine"]}, "'B' have several coarse labels \\(x, y\\)"),
        ({"levels": ["lineage", "broken", "fine"]}, "a coarse and a fine label are learned"),
        ({"levels": ["fine", "lineage"], "label_key": "fine"}, "the coarse one first"),
        ({"levels": ["organ", "fine"]}, "has no label 'organ'"),
    ]:
        with pytest.raises(InputError, match=message):
            finetune(folder / "model", folder / "records", tmp_path / "no", **options)
    assert not (tmp_path / "no").exists()
