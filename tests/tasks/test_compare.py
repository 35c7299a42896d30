"""Comparison of conditions: what was planted is found; where nothing was, nothing is found more
often than the stated rate allows.

Tests of error rates use fixed seeds and bounds that a right program exceeds once in 1,000.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats

from concerto_tf.errors import InputError
from concerto_tf.tasks.comparison.figures import heat_figure
from concerto_tf.tasks.comparison.genes import fold_changes

PLANTED = [f"g{i}" for i in range(5)]
SETS = {"planted": PLANTED, "other": [f"g{i}" for i in range(20, 30)]}


@pytest.mark.parametrize("sample_key", [None, "donor"])
def test_planted_effects_are_found(
    compared: Any, ill_and_well: Any, sample_key: str | None
) -> None:
    tables = compared(ill_and_well(1500, planted=True), sample_key=sample_key)
    found = tables["composition"].query("significant")
    assert "c" in set(found["cell_type"])
    assert (found.set_index("cell_type").loc["c", "log2_ratio"]) < -0.5
    found = tables["markers"].query("significant")
    in_a = found[found["cell_type"] == "a"]
    assert set(PLANTED) <= set(in_a["gene"])
    assert (in_a.set_index("gene").loc[PLANTED, "log_fold_change"] > 1).all()
    assert set(found["cell_type"]) == {"a"}
    found = tables["modules"].query("significant")
    assert ("a", "planted") in set(zip(found["cell_type"], found["set"], strict=True))


@pytest.mark.parametrize("share", [pytest.param(0.5, marks=pytest.mark.slow), 0.1])
def test_shuffled_conditions_give_nothing(ill_and_well: Any, compared: Any, share: float) -> None:
    """15 comparisons of nothing: each table has anything significant with 5% probability."""
    rng, found, p = np.random.default_rng(0), {"composition": 0, "markers": 0, "modules": 0}, []
    for seed in range(15):
        adata = ill_and_well(400, 40, seed, planted=False)
        adata.obs["state"] = np.where(rng.random(400) < share, "ill", "well")
        tables = compared(adata, log_fold_change=0.0)
        p.append(tables["markers"]["p"])
        for name in found:
            found[name] += bool(tables[name]["significant"].any())
    assert max(found.values()) <= stats.binom.ppf(0.999, 15, 0.05)
    p = np.concatenate(p)
    # genes of a cell are nearly independent here
    assert abs((p < 0.05).mean() - 0.05) < 3.3 * np.sqrt(0.05 * 0.95 / len(p)) + 0.005
    assert (p < 0.001).mean() < 0.002


def test_donors_that_differ_are_no_effect(ill_and_well: Any, compared: Any) -> None:
    """Cells find what are differences of donors; tests between these do not."""
    on_cells = on_samples = 0
    for seed in range(6):
        adata = ill_and_well(400, 20, seed, planted=False, wobble=0.5)
        on_cells += compared(adata, sets=None)["markers"]["significant"].any()
        told = compared(adata, sets=None, sample_key="donor")["markers"]
        on_samples += told["significant"].any()
    assert on_cells == 6
    assert on_samples <= stats.binom.ppf(0.999, 6, 0.05)


def test_counts_and_their_logarithms_are_the_same(ill_and_well: Any, compared: Any) -> None:
    counts = ill_and_well()
    logs = counts.copy()
    factor = 1e4 / np.asarray(counts.X.sum(1))
    logs.X = sp.csr_matrix(counts.X.multiply(factor)).log1p().astype("f4")
    expected, found = compared(counts), compared(logs)
    pd.testing.assert_frame_equal(found["composition"], expected["composition"])
    keys = ["cell_type", "gene"]
    one, two = (tables["markers"].set_index(keys).sort_index() for tables in (expected, found))
    np.testing.assert_allclose(one["log_fold_change"], two["log_fold_change"], rtol=1e-3, atol=1e-3)
    # rounding breaks a few ties
    np.testing.assert_allclose(one["score"], two["score"], atol=0.03)


def test_several_conditions_each_against_the_control(ill_and_well: Any, compared: Any) -> None:
    adata = ill_and_well(900)
    adata.obs.loc[adata.obs["donor"].isin(["d5"]), "state"] = "other"
    table = compared(adata)["markers"]
    assert set(table["condition"]) == {"ill", "other"}
    called = table.query("significant")
    assert set(PLANTED) <= set(called.query("condition == 'ill'")["gene"])
    assert (called["condition"] == "other").sum() <= 3, "by chance, of 180 tests in three families"


def test_what_is_left_behind(compared: Any, ill_and_well: Any, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    compared(ill_and_well(), out, sample_key="donor")
    assert {p.name for p in out.iterdir()} == {
        "composition.tsv",
        "markers.tsv",
        "modules.tsv",
        "enrichment.tsv",
        "gsea.tsv",
        "figures",
        "report.html",
        "compare.json",
    }
    assert {p.name for p in (out / "figures").iterdir()} == {
        "composition.png",
        "violin_modules.png",
        "violin_genes.png",
        "dots.png",
        "heatmap.png",
    }
    summary = json.loads((out / "compare.json").read_text())
    found = pd.read_csv(out / "markers.tsv", sep="\t")
    assert summary["tested_on"] == "samples" and summary["tested"]["markers"] == len(found)
    assert summary["significant"]["markers"] == found["significant"].sum()
    assert any("Wilcoxon" in note for note in summary["notes"])


def test_figures_of_others_stay(ill_and_well: Any, compared: Any, tmp_path: Path) -> None:
    figures = tmp_path / "figures"
    figures.mkdir()
    for name in ("umap_kind", "training", "heatmap"):
        (figures / f"{name}.png").write_bytes(b"old")
    adata = ill_and_well(60)
    compared(adata, tmp_path, min_cells=1000)  # no gene is compared, so nothing is drawn of any
    assert {p.name for p in figures.iterdir()} == {
        "umap_kind.png",
        "training.png",
        "composition.png",
        "violin_modules.png",
    }
    assert (figures / "training.png").read_bytes() == b"old"


def test_sets_without_a_gene_are_skipped(compared: Any, ill_and_well: Any, tmp_path: Path) -> None:
    sets = {**SETS, "x": ["CD3E"], "y": ["CD8A"], "part": ["g1", "g2", "GONE", "AWAY"]}
    tables = compared(ill_and_well(200), tmp_path, sets=sets)
    assert set(tables["modules"]["set"]) == {"planted", "other", "part"}
    notes = json.loads((tmp_path / "compare.json").read_text())["notes"]
    assert [n for n in notes if "gene sets" in n] == [
        "2 of 5 gene sets have no gene in the data and are left out",
        "2 genes of the gene sets are missing and left out: AWAY, GONE",
    ]


def test_nothing_significant_is_drawn_all_the_same(
    compared: Any, ill_and_well: Any, tmp_path: Path
) -> None:
    compared(ill_and_well(300, planted=False), tmp_path / "out", sets=None, log_fold_change=9.0)
    assert (tmp_path / "out/figures/heatmap.png").stat().st_size > 0
    assert not (tmp_path / "out/enrichment.tsv").exists()  # it would be empty


def test_few_cells_and_few_samples_are_said(
    ill_and_well: Any, compared: Any, tmp_path: Path
) -> None:
    adata = ill_and_well(300)
    adata.obs.loc[adata.obs_names[:3], "kind"] = "rare"
    adata.obs.loc[adata.obs_names[3:5], "state"] = None
    compared(adata, tmp_path / "out", sample_key="state")
    summary = json.loads((tmp_path / "out/compare.json").read_text())
    text = "\n".join(summary["notes"])
    assert summary["tested_on"] == "cells"
    for words in ("2 cells without a condition", "too few samples", ": rare", "no replicates"):
        assert words in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"control": "wel"}, "no 'wel' in obs.'state'. to compare with; did you mean 'well'"),
        ({"condition": "stat"}, "no column 'stat' in obs; did you mean 'state'"),
        ({"label_key": None}, "neither concerto_label nor concerto_cluster in obs"),
        ({"sample_key": "patient"}, "no column 'patient' in obs"),
        ({"sets": {"x": ["CD3E"]}}, "has no gene of the set 'x'"),
        ({"sets": {"x": ["CD3E"], "y": ["CD4"]}}, "has no gene of any of the 2 sets"),
        ({"sets": "nowhere.gmt"}, "nowhere.gmt: neither a gene set that goes by name"),
        ({"alpha": 5.0}, "alpha is 5.0"),
        ({"log_fold_change": -1.0}, "log fold change is -1.0"),
        ({"min_cells": 1}, "min_cells is 1"),
        ({"layer": "counts"}, "no layer 'counts'"),
    ],
)
def test_unsuitable_options_leave_nothing(
    compared: Any, ill_and_well: Any, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        compared(ill_and_well(60), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_one_condition_is_nothing_to_compare(ill_and_well: Any, compared: Any) -> None:
    adata = ill_and_well(60)
    adata.obs["state"] = "ill"
    with pytest.raises(InputError, match=r"cells of one condition only \(ill\); give a file that"):
        compared(adata)


def test_a_gene_that_is_nowhere_in_a_condition_has_no_fold_change(
    ill_and_well: Any, compared: Any
) -> None:
    adata = ill_and_well(800, planted=False)
    counts = adata.X.toarray()
    well = (adata.obs["state"] == "well").to_numpy()
    counts[well, 7] = 0
    counts[~well, 7] = np.random.default_rng(0).poisson(2.0, (~well).sum())
    adata.X = sp.csr_matrix(counts)
    found = compared(adata)["markers"].query("gene == 'g7'")
    assert found["log_fold_change"].isna().all() and (found["share_control"] == 0).all()
    assert found["significant"].all(), "the p value alone decides"
    assert (found["score"] > 0).all()


def test_gene_without_fold_change_keeps_its_place(
    ill_and_well: Any, compared: Any, tmp_path: Path
) -> None:
    """As genes of the Y chromosome between women and men."""
    adata = ill_and_well(300, 20)
    counts = adata.X.toarray()
    counts[:, 7] = np.where(adata.obs["state"] == "well", 0, 3)
    adata.X = sp.csr_matrix(counts)
    found = compared(adata, tmp_path, sets=None)["markers"]
    assert found.query("gene == 'g7'")["log_fold_change"].isna().all()
    assert (tmp_path / "figures/heatmap.png").exists()
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "g7" in text
    none = fold_changes(found, ["g7"])
    assert list(none) == ["g7"] and none.isna().all(axis=None)
    heat_figure(found, ["g7"], "none", tmp_path / "none.png")


def test_report_tells_what_was_found_and_by_which_tests(
    compared: Any, ill_and_well: Any, tmp_path: Path
) -> None:
    compared(ill_and_well(1500), tmp_path / "samples", sample_key="donor")
    text = (tmp_path / "samples" / "report.html").read_text("utf-8")
    for words in ("tests between samples", "ill compared with well", "g0", "log2 ratio", "planted"):
        assert words in text, words
    assert "sample_key = donor" in text and str(tmp_path) not in text
    compared(ill_and_well(300), tmp_path / "cells", sets=None)
    text = (tmp_path / "cells" / "report.html").read_text("utf-8")
    assert "tests are on cells, which are no replicates" in text
    assert "no gene sets given" in text


def test_table_without_rows_is_not_written(
    compared: Any, ill_and_well: Any, tmp_path: Path
) -> None:
    compared(ill_and_well(300), tmp_path)
    assert (tmp_path / "modules.tsv").exists()
    compared(ill_and_well(300), tmp_path, sets=None)
    left = {path.name for path in tmp_path.glob("*.tsv")}
    assert left == {"composition.tsv", "markers.tsv"}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that were saved, by name."""
    figures: dict[str, Figure] = {}

    def kept(figure: Figure, path: Path) -> None:
        figures[path.name] = figure

    monkeypatch.setattr("concerto_tf.tasks.comparison.figures.save_figure", kept)
    return figures


def said(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_figures_tell_what_they_rest_on(
    ill_and_well: Any, compared: Any, drawn: dict[str, Figure], tmp_path: Path
) -> None:
    adata = ill_and_well(1500)
    adata.X[:, 3] = adata.X[:, 3].multiply(np.where(adata.obs["state"] == "ill", 500, 1)[:, None])
    compared(adata, tmp_path, figure_format="svg")
    assert "no replicates" in said(drawn["composition.svg"])
    dots = said(drawn["dots.svg"])
    assert all(share in dots for share in ("25%", "50%", "100%", "expressing"))
    [image] = drawn["heatmap.svg"].axes[0].images
    low, high = image.get_clim()
    assert high == -low == np.nanmax(np.abs(image.get_array())) > 6
    compared(adata, tmp_path, sample_key="donor")
    assert "no replicates" not in said(drawn["composition.png"])
    with pytest.raises(InputError, match="cannot be drawn as 'gif'; choose one of png, pdf, svg"):
        compared(adata, tmp_path, figure_format="gif")
