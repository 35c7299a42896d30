"""Figures in scanpy's manner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import concerto_tf as ct


@pytest.fixture
def line() -> AnnData:
    """Cells along a line with their pseudotime."""
    adata = AnnData(np.zeros((80, 1), "f4"))
    adata.obs_names = [f"cell{i}" for i in range(80)]
    adata.obsm["X_concerto"] = np.stack([np.arange(80.0), np.zeros(80)], 1)
    adata.obsm["X_umap"] = adata.obsm["X_concerto"].copy()
    return ct.pseudotime(adata, "cell0")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def test_axes_are_returned_unless_shown(
    line: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    for draw in (ct.pl.umap, ct.pl.pseudotime, ct.pl.paga):
        assert draw(line, show=False) is not None and not shown
        assert draw(line) is None and shown.pop()
        own = plt.subplots()[1]
        assert draw(line, ax=own) is own and own.collections
        assert draw(line, save=tmp_path / "a.svg") is not None and not shown
        assert (tmp_path / "a.svg").exists()
        (tmp_path / "a.svg").unlink()


@pytest.mark.parametrize("name", ["sankey", "explained", "training"])
def test_figures_of_tables_are_shown_saved_or_returned(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[int]] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.get_fignums()))
    groups = {"group": ["1", "1", "2"], "cells": 9, "modality": "rna", "rank": [1, 2, 1]}
    of = {
        "sankey": groups | {"label": ["B", "T", "T"], "share": [0.7, 0.3, 1.0]},
        "explained": groups | {"gene": ["a", "b", "b"], "weight": [3.0, 2.0, 4.0]},
        "training": {"loss": [3.0, 2.0], "alignment": [1.0, 0.5]},
    }
    given = of[name] if name == "training" else pd.DataFrame(of[name])
    draw = getattr(ct.pl, name)
    assert draw(given, show=False) and not shown
    assert draw(given) is None and shown.pop()  # a figure that pyplot knows
    assert draw(given, save=tmp_path / "a.svg") and not shown
    assert (tmp_path / "a.svg").stat().st_size > 1000
    nothing = {"training": {}, "sankey": pd.DataFrame(of["sankey"]).iloc[:0]}
    with pytest.raises(ct.InputError):
        draw(nothing.get(name, pd.DataFrame()))


def test_pseudotime_colors_cells_and_marks_the_root(line: AnnData) -> None:
    axes = ct.pl.pseudotime(line, show=False)
    drawn = axes.collections[1]
    order = np.argsort(drawn.get_offsets()[:, 0])
    np.testing.assert_array_equal(drawn.get_array()[order], line.obs["concerto_pseudotime"])
    [root] = axes.lines
    assert root.get_xydata().tolist() == [[0.0, 0.0]]


def test_paga_draws_groups_and_their_connections(line: AnnData) -> None:
    axes = ct.pl.paga(line, show=False)
    names = list(line.obs["concerto_cluster"].cat.categories)
    assert [text.get_text() for text in axes.texts] == names
    assert len(axes.lines) >= len(names) - 1  # a line is connected


def test_what_is_missing_is_said(line: AnnData) -> None:
    del line.obsm["X_umap"]
    with pytest.raises(ct.InputError, match="no X_umap in obsm"):
        ct.pl.paga(line, show=False)
    with pytest.raises(ct.InputError, match="no X_umap in obsm"):
        ct.pl.umap(line, show=False)
    del line.uns["paga"], line.obs["concerto_pseudotime"]
    with pytest.raises(ct.InputError, match="no PAGA"):
        ct.pl.paga(line, show=False)
    with pytest.raises(ct.InputError, match="no column 'concerto_pseudotime'"):
        ct.pl.pseudotime(line, show=False)


def test_figure_of_the_command(line: AnnData, tmp_path: Path) -> None:
    del line.obsm["X_umap"]
    ct.pseudotime(line, "cell0", figure=tmp_path / "order.pdf")
    assert (tmp_path / "order.pdf").read_bytes().startswith(b"%PDF")
    assert "X_umap" not in line.obsm
    with pytest.raises(ct.InputError, match="no kind of image"):
        ct.pseudotime(line, "cell0", figure=tmp_path / "order.doc")
