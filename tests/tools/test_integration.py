"""Concerto, Harmony and PCA on cells of several sources."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf.errors import InputError
from concerto_tf.metrics import embedding_scores, ilisi
from concerto_tf.records import convert
from protocols.baselines import cells_of, harmony, log_normalized, pca
from protocols.integration import integration

without_harmony = pytest.mark.skipif(find_spec("harmonypy") is None, reason="no harmonypy here")


@pytest.mark.slow
def test_twelve_sources_of_very_uneven_size(
    make_cells: Callable[..., AnnData], quick: dict, tmp_path: Path
) -> None:
    sizes = {("u", f"s{i:02d}"): 2 + 3 * i for i in range(12)}
    sizes |= {("v", f"s{i:02d}"): 40 - 3 * i for i in range(1, 12)}  # s00 has 2 cells, all u
    cells = make_cells(sizes)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    result = integration(
        tmp_path / "cells.h5ad",
        tmp_path / "out",
        source_key="donor",
        label_key="kind",
        methods=("concerto", "pca"),
        seeds=(1,),
        **quick,
    )
    assert result["sources"]["s00"] == 2 and len(result["sources"]) == 12
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    assert set(result["mean"]) == {"concerto", "pca"}
    for scores in result["mean"].values():
        assert scores["knn_accuracy"] > 0.9
        assert {"asw_source", "kbet", "ilisi", "graph_connectivity"} <= set(scores)
    table = pd.read_csv(tmp_path / "out" / "table.tsv", sep="\t")
    assert len(table) == 2
    mean = table[table["method"] == "concerto"]["ilisi"].mean()
    np.testing.assert_allclose(result["mean"]["concerto"]["ilisi"], mean, rtol=1e-5)
    assert (tmp_path / "out" / "figure.png").exists()


@pytest.mark.slow
def test_inputs_may_be_the_sources_and_labels_may_be_left_out(
    make_cells: Callable[..., AnnData], tmp_path: Path
) -> None:
    paths = []
    for source in "ab":
        make_cells({("u", source): 25, ("v", source): 25}).write_h5ad(tmp_path / f"{source}.h5ad")
        paths.append(tmp_path / f"{source}.h5ad")
    result = integration(paths, tmp_path / "out", source_key=None, methods=("pca",), seeds=(0, 1))
    assert result["sources"] == {"a": 50, "b": 50}
    assert set(result["mean"]["pca"]) == {"asw_source", "kbet", "ilisi"}


def test_what_cannot_be_integrated_is_refused(
    make_cells: Callable[..., AnnData], tmp_path: Path
) -> None:
    cells = make_cells({("u", "a"): 25, ("v", "a"): 25})
    with pytest.raises(InputError, match="all cells are of one source"):
        integration(cells, tmp_path / "a", source_key="donor", methods=("pca",))
    with pytest.raises(InputError, match="'scanvi'; choose some of concerto, .*harmony, pca"):
        integration(cells, tmp_path / "b", source_key="donor", methods=("scanvi",))
    with pytest.raises(InputError, match="no method is given"):
        integration(cells, tmp_path / "b", source_key="donor", methods=())
    with pytest.raises(InputError, match="no seed is given"):
        integration(cells, tmp_path / "b", source_key="donor", methods=("pca",), seeds=())
    with pytest.raises(InputError, match="'lab'"):
        integration(cells, tmp_path / "b", source_key="lab", methods=("pca",))
    assert not (tmp_path / "a" / "result.json").exists()


def test_records_come_back_as_cells_in_input_order(
    make_cells: Callable[..., AnnData], tmp_path: Path
) -> None:
    cells = make_cells({("u", "a"): 40, ("v", "b"): 33})
    cells.obs.loc[cells.obs_names[3], "kind"] = np.nan
    records = convert(cells, tmp_path / "r", source_key="donor", label_keys=["kind"], shards=3)
    back = cells_of(records)
    np.testing.assert_array_equal(back.X.toarray(), cells.X)
    assert list(back.obs_names) == list(cells.obs_names)
    assert list(back.obs["source"]) == list(cells.obs["donor"])
    assert back.obs["kind"].iloc[3] is None
    normalized = log_normalized(back)
    want = np.log1p(1e4 * cells.X / cells.X.sum(1, keepdims=True))
    np.testing.assert_allclose(normalized.X.toarray(), want, rtol=1e-5)
    np.testing.assert_array_equal(log_normalized(back, counts=False).X.toarray(), cells.X)


def test_components_tell_types_apart_and_of_few_cells_are_few(
    make_cells: Callable[..., AnnData],
) -> None:
    cells = make_cells({("u", "a"): 30, ("v", "a"): 30})
    z = pca(log_normalized(AnnData(cells.X, cells.obs, cells.var)), components=5)
    assert z.shape == (60, 5)
    assert embedding_scores(z, cells.obs["kind"])["ari_kmeans"] == 1
    few = pca(log_normalized(cells[:6].copy()))
    assert few.shape == (6, 5)


@without_harmony
def test_harmony_mixes_what_principal_components_do_not(make_cells: Callable[..., AnnData]) -> None:
    cells = make_cells({(kind, source): 60 for kind in "uv" for source in "ab"})
    before = pca(log_normalized(cells), components=10)
    after = harmony(before, cells.obs["donor"])
    assert after.shape == before.shape
    assert ilisi(after, cells.obs["donor"]) > ilisi(before, cells.obs["donor"]) + 0.2
    assert embedding_scores(after, cells.obs["kind"])["knn_accuracy"] == 1


def test_harmony_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "harmonypy":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="pip install harmonypy, or leave harmony out"):
        integration(AnnData(np.ones((4, 2))), tmp_path / "out", source_key=None)
    assert not (tmp_path / "out").exists()
