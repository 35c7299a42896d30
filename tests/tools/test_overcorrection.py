"""A cell type that one source alone has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.metrics import silhouette_samples

from concerto_tf.errors import InputError
from protocols.overcorrection import judge, overcorrection

SIZES = {("u", "a"): 20, ("u", "b"): 30, ("v", "a"): 40, ("v", "b"): 20, ("w", "b"): 15}


def test_each_type_is_removed_from_all_sources_but_its_largest(
    make_cells: Callable[..., AnnData], tmp_path: Path
) -> None:
    cells = make_cells(SIZES)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    asked = {"source_key": "donor", "label_key": "kind", "seeds": (0, 1), "methods": ("pca",)}
    result = overcorrection(tmp_path / "cells.h5ad", tmp_path / "out", **asked)
    # w is in one source from the beginning: nothing to remove.
    assert result["types"] == {"u": "b", "v": "a"}
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    table = pd.read_csv(tmp_path / "out" / "table.tsv", sep="\t")
    assert len(table) == result["methods"]["pca"]["cases"] == 4
    assert table.groupby("type")["cells"].unique().map(list).to_dict() == {"u": [30], "v": [40]}
    assert table["merged"].sum() == result["methods"]["pca"]["merged"]
    fell = table["silhouette_after"] < table["silhouette_before"] - 0.05
    assert fell.sum() == result["methods"]["pca"]["fell"]
    assert (tmp_path / "out" / "figure.png").exists()
    assert overcorrection(tmp_path / "cells.h5ad", tmp_path / "out", **asked) == result


@pytest.mark.slow
def test_a_model_is_trained_once_for_each_removal(
    make_cells: Callable[..., AnnData], quick: dict, tmp_path: Path
) -> None:
    asked = {"source_key": "donor", "label_key": "kind", "seeds": (0,), **quick}
    asked |= {"methods": ("concerto",), "types": ["v"]}
    result = overcorrection(make_cells(SIZES), tmp_path, **asked)
    assert result["methods"]["concerto"]["cases"] == 1
    models = {p: p.stat().st_mtime_ns for p in tmp_path.glob("models/*/*/*/model.keras")}
    assert len(models) == 2
    assert overcorrection(make_cells(SIZES), tmp_path, **asked) == result
    assert models == {p: p.stat().st_mtime_ns for p in models}


def test_a_type_on_its_own_and_one_that_is_merged_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(["u", "v", "w"], [60, 60, 20]).astype(object)
    z = rng.normal(size=(140, 4)) + 20 * np.eye(3, 4)[[0] * 60 + [1] * 60 + [2] * 20]
    apart = judge(z, labels, "w")
    assert apart["neighbours"] == apart["cluster"] == 1 and apart["silhouette"] > 0.7
    merged = z.copy()
    merged[120:] = rng.normal(size=(20, 4)) + [20, 0, 0, 0]  # among u
    scores = judge(merged, labels, "w")
    assert scores["neighbours"] < 0.5 and scores["cluster"] < 0.5 and scores["silhouette"] < 0.1
    want = silhouette_samples(merged, labels.astype(str))[120:].mean()
    np.testing.assert_allclose(scores["silhouette"], want, atol=1e-6)
    # Cells without a label are not judged.
    labels[:10] = None
    more = judge(merged, labels, "w")
    assert more == judge(merged[10:], labels[10:], "w")


def test_unsuitable_types_are_refused(make_cells: Callable[..., AnnData], tmp_path: Path) -> None:
    sizes = {("u", "a"): 20, ("u", "b"): 4, ("v", "a"): 20, ("w", "a"): 3, ("w", "b"): 3}
    cells = make_cells(sizes)
    asked = {"source_key": "donor", "label_key": "kind", "methods": ("pca",), "seeds": (0,)}
    for name in ("v", "w", "x"):
        with pytest.raises(InputError, match=f"'{name}' is not in two sources with at least 5"):
            overcorrection(cells, tmp_path / name, types=[name], **asked)
    apart = cells[(cells.obs["kind"] != "u") | (cells.obs["donor"] == "a")].copy()
    with pytest.raises(InputError, match="no type of 'kind' is in two sources"):
        overcorrection(apart, tmp_path / "apart", **asked)
    alone = cells[cells.obs["kind"] == "u"].copy()
    with pytest.raises(InputError, match="fewer than two cell types"):
        overcorrection(alone, tmp_path / "alone", **asked)
