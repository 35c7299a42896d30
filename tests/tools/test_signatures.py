"""Ranks of markers by attention and by a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf.errors import InputError
from protocols.signatures import read_markers, signatures

MARKERS = {"u": ["AB0C", "AB3C"], "v": ["AB7C", "NOT1"], "w": ["AB12C"], "x": ["AB18C"]}


@pytest.fixture(scope="module")
def cells(make_cells: Callable[..., AnnData]) -> AnnData:
    """Three types in two sources, and one of which there is one cell."""
    return make_cells({(kind, source): 30 for kind in "uvw" for source in "ab"} | {("x", "a"): 1})


@pytest.fixture(scope="module")
def found(
    cells: AnnData, quick: dict, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict, dict]:
    """The folder, what was asked for, and what came out."""
    folder = tmp_path_factory.mktemp("signatures")
    cells.write_h5ad(folder / "cells.h5ad")
    pairs = [(group, gene) for group, genes in MARKERS.items() for gene in genes]
    table = pd.DataFrame(pairs, columns=["group", "gene"])
    table.to_csv(folder / "markers.tsv", sep="\t", index=False)
    asked = {"groupby": "kind", "source_key": "donor", "seeds": (1,), **quick}
    result = signatures(folder / "cells.h5ad", folder / "markers.tsv", folder / "out", **asked)
    return folder, asked, result


def test_markers_rank_first_by_weight_by_value_and_by_the_test(
    found: tuple[Path, dict, dict],
) -> None:
    folder, _, result = found
    out = folder / "out"
    assert json.loads((out / "result.json").read_text()) == result
    assert (out / "figure.png").exists()
    assert result["not_among_the_genes"] == ["NOT1"] and result["markers"] == 6
    for row in result["ranks"]:
        if row["group"] != "x":
            # Each type has four genes of its own.
            assert max(row["weight"], row["value"], row["wilcoxon"]) <= 4, row
        else:
            assert row["wilcoxon"] == 40  # one cell is no sample to test
            assert row["weight"] <= 4
    assert result["rankings"]["weight"]["top10"] == 5
    assert result["rankings"]["wilcoxon"]["top10"] == 4
    table = pd.read_csv(out / "table.tsv", sep="\t")
    assert len(table) == 6 and (table["genes"] == 40).all()
    assert table[table["gene"] == "NOT1"]["rank_weight"].isna().all()


@pytest.mark.slow
def test_what_is_done_is_not_done_again(found: tuple[Path, dict, dict], cells: AnnData) -> None:
    folder, asked, _ = found
    model = folder / "out" / "models" / "seed1" / "model.keras"
    before = model.stat().st_mtime_ns
    genes = list(cells.var_names)
    result = signatures(folder / "cells.h5ad", {"v": genes}, folder / "out", **asked)
    assert model.stat().st_mtime_ns == before
    # And the ranks by value are those of the plain statistic.
    total = cells.X.sum(1, keepdims=True)
    x = np.log1p(round(float(np.median(total))) * cells.X / total).astype("float64")
    kinds = cells.obs["kind"].to_numpy()
    spread = {k: x[kinds == k].std(0) + x[kinds != k].std(0) for k in "uvwx"}
    floor = np.quantile(np.stack(list(spread.values())), 0.05)
    difference = x[kinds == "v"].mean(0) - x[kinds != "v"].mean(0)
    want = np.argsort(np.argsort(-difference / (spread["v"] + floor))) + 1
    got = {row["gene"]: row["value"] for row in result["ranks"]}
    # Near ties may swap in single precision.
    assert np.abs(np.array([got[gene] for gene in genes]) - want).max() <= 1


@pytest.mark.parametrize(
    ("markers", "message"),
    [
        ({"B": ["AB0C"]}, r"'kind' has no group 'B'.*there are: u, v, w, x"),
        ({"u": ["MS4A1"]}, "has none of the markers"),
        ({}, "no marker in it"),
        (pd.DataFrame({"group": ["u"]}), "no column 'gene'"),
    ],
)
def test_unsuitable_markers_are_refused(
    cells: AnnData, quick: dict, tmp_path: Path, markers: object, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        signatures(cells, markers, tmp_path, groupby="kind", seeds=(0,), **{**quick, "epochs": 1})
    assert not (tmp_path / "result.json").exists()


def test_markers_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none.tsv: cannot be read"):
        read_markers(tmp_path / "none.tsv")
    (tmp_path / "m.csv").write_text("group,gene\nu,A\nu,A\nv,\n")
    assert read_markers(tmp_path / "m.csv").values.tolist() == [["u", "A"]]
