"""Pages about labels: what they say, and where they are."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from concerto_tf import annotate, map
from concerto_tf.report import about
from concerto_tf.tasks.reporting import labels


def figures(path: Path) -> list[dict[str, Any]]:
    packed = re.search(r'id="data">([^<]*)<', path.read_text("utf-8"))
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))["figures"]


def test_labels_unknown_and_confidence_are_told(typed_cells: Path, tmp_path: Path) -> None:
    table = annotate(
        typed_cells / "typed", typed_cells / "query.h5ad", tmp_path / "a.h5ad", alpha=0.2, vote=True
    )
    path = tmp_path / "report.html"
    assert table.attrs["page"] == str(path) and about(path) == "a.h5ad"
    text = path.read_text("utf-8")
    unknown = int((table["label"] == "unknown").sum())
    assert f"{unknown} of 300 cells" in text and "of known cells about" in text
    for words in ("<h1>query.h5ad</h1>", "Votes of groups", "cells held out", "alpha = 0.2"):
        assert words in text, words
    assert str(tmp_path) not in text and str(typed_cells) not in text
    [drawn] = figures(path)
    assert sorted(drawn["names"]) == sorted(table.index)
    colors = {color["name"]: color for color in drawn["colors"]}
    assert list(colors)[:2] == ["label", "confidence"]
    counts = table["label"].value_counts()
    told = dict(zip(colors["label"]["categories"], colors["label"]["sizes"], strict=True))
    assert told == counts.to_dict()
    of = dict(zip(drawn["names"], colors["confidence"]["values"], strict=True))
    given = pd.Series(of)[table.index]
    np.testing.assert_allclose(given, table["confidence"], rtol=1e-3)


def test_map_tells_of_its_reference(typed_cells: Path, tmp_path: Path) -> None:
    shutil.copytree(typed_cells / "model", tmp_path / "model")
    given = {"reference": typed_cells / "records", "label_key": "type"}
    map(tmp_path / "model", typed_cells / "query.h5ad", tmp_path / "m.h5ad", **given)
    text = (tmp_path / "report.html").read_text("utf-8")
    for words in ("240 cells", "labels (type)", "B, NK, T", "concerto map"):
        assert words in text, words
    map(tmp_path / "model", typed_cells / "query.h5ad", tmp_path / "m.h5ad")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "embedded by concerto map" in text and "Labels" not in text


def test_pages_about_several_files_of_a_folder(typed_cells: Path, tmp_path: Path) -> None:
    query = typed_cells / "query.h5ad"
    for name in ("one.h5ad", "two.h5ad", "one.h5ad"):
        annotate(typed_cells / "typed", query, tmp_path / name)
    pages = {path.name: about(path) for path in tmp_path.glob("*.html")}
    assert pages == {"report.html": "one.h5ad", "two.report.html": "two.h5ad"}
    # A page of somebody else stays.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.html").write_text("mine")
    annotate(typed_cells / "typed", query, tmp_path / "other" / "one.h5ad")
    assert (tmp_path / "other" / "report.html").read_text() == "mine"
    assert about(tmp_path / "other" / "one.report.html") == "one.h5ad"


def test_map_of_the_cells_is_their_own_or_of_a_part_of_them(
    typed_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels, "MOST_MAPPED", 50)
    annotate(typed_cells / "typed", typed_cells / "query.h5ad", tmp_path / "a.h5ad")
    assert "50 of the 300 cells, chosen at random" in (tmp_path / "report.html").read_text("utf-8")
    assert len(figures(tmp_path / "report.html")[0]["x"]) == 50
    cells = anndata.read_h5ad(typed_cells / "query.h5ad")
    cells.obsm["X_umap"] = np.stack([np.arange(300.0), np.zeros(300)], axis=1)
    cells.write_h5ad(tmp_path / "own.h5ad")
    annotate(typed_cells / "typed", tmp_path / "own.h5ad", tmp_path / "a.h5ad")
    assert "the one that the cells came with" in (tmp_path / "report.html").read_text("utf-8")
    [drawn] = figures(tmp_path / "report.html")
    assert sorted(drawn["x"]) == [round(i * 20_000 / 299) for i in range(300)]
