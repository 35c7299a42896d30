"""Comparison of conditions: what was planted is found; where nothing was, nothing is found more
often than the stated rate allows.

Tests of error rates use fixed seeds and bounds that a right program exceeds once in 1,000.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats

from concerto_tf.errors import InputError
from concerto_tf.tasks.compare import compare
from concerto_tf.tasks.comparison.figures import heat_figure
from concerto_tf.tasks.comparison.genes import fold_changes
from concerto_tf.tasks.comparison.groups import adjust, rank_skewness, skewed_p, t_test

PLANTED = [f"g{i}" for i in range(5)]
SETS = {"planted": PLANTED, "other": [f"g{i}" for i in range(20, 30)]}


def cells(
    n: int = 600,
    genes: int = 60,
    seed: int = 0,
    planted: bool = True,
    donors: int = 6,
    wobble: float = 0.0,
) -> AnnData:
    """Types a, b and c in conditions ill and well, donors within these.

    Planted: five genes three times as high in the ill cells of a, and half of the ill cells of c
    away. `wobble` is the spread of every gene's logarithm between donors.
    """
    rng = np.random.default_rng(seed)
    kind = rng.choice(["a", "b", "c"], n, p=[0.4, 0.3, 0.3])
    donor = rng.integers(0, donors, n)
    ill = donor < donors / 2
    rates = rng.gamma(2.0, 1.0, genes) * np.exp(rng.normal(0, wobble, (donors, genes)))[donor]
    if planted:
        rates[np.ix_(ill & (kind == "a"), range(5))] *= 3
    obs = pd.DataFrame({"kind": kind, "donor": [f"d{i}" for i in donor]})
    obs["state"] = np.where(ill, "ill", "well")
    obs.index = [f"cell{i}" for i in range(n)]
    adata = AnnData(sp.csr_matrix(rng.poisson(rates).astype("f4")), obs)
    adata.var_names = [f"g{i}" for i in range(genes)]
    gone = planted & ill & (kind == "c") & (rng.random(n) < 0.6)
    return adata[~gone].copy()


def run(adata: AnnData, out: Path | None = None, **options: object) -> dict[str, pd.DataFrame]:
    keys = {"condition": "state", "control": "well", "label_key": "kind", "sets": SETS}
    return compare(adata, out, **(keys | options))


@pytest.mark.parametrize("sample_key", [None, "donor"])
def test_planted_effects_are_found(sample_key: str | None) -> None:
    tables = run(cells(1500, planted=True), sample_key=sample_key)
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
def test_shuffled_conditions_give_nothing(share: float) -> None:
    """15 comparisons of nothing: each table has anything significant with 5% probability."""
    rng, found, p = np.random.default_rng(0), {"composition": 0, "markers": 0, "modules": 0}, []
    for seed in range(15):
        adata = cells(400, 40, seed, planted=False)
        adata.obs["state"] = np.where(rng.random(400) < share, "ill", "well")
        tables = run(adata, log_fold_change=0.0)
        p.append(tables["markers"]["p"])
        for name in found:
            found[name] += bool(tables[name]["significant"].any())
    assert max(found.values()) <= stats.binom.ppf(0.999, 15, 0.05)
    p = np.concatenate(p)
    # genes of a cell are nearly independent here
    assert abs((p < 0.05).mean() - 0.05) < 3.3 * np.sqrt(0.05 * 0.95 / len(p)) + 0.005
    assert (p < 0.001).mean() < 0.002


def test_donors_that_differ_are_no_effect() -> None:
    """Cells find what are differences of donors; tests between these do not."""
    on_cells = on_samples = 0
    for seed in range(6):
        adata = cells(400, 20, seed, planted=False, wobble=0.5)
        on_cells += run(adata, sets=None)["markers"]["significant"].any()
        told = run(adata, sets=None, sample_key="donor")["markers"]
        on_samples += told["significant"].any()
    assert on_cells == 6
    assert on_samples <= stats.binom.ppf(0.999, 6, 0.05)


def test_counts_and_their_logarithms_are_the_same() -> None:
    counts = cells()
    logs = counts.copy()
    factor = 1e4 / np.asarray(counts.X.sum(1))
    logs.X = sp.csr_matrix(counts.X.multiply(factor)).log1p().astype("f4")
    expected, found = run(counts), run(logs)
    pd.testing.assert_frame_equal(found["composition"], expected["composition"])
    keys = ["cell_type", "gene"]
    one, two = (tables["markers"].set_index(keys).sort_index() for tables in (expected, found))
    np.testing.assert_allclose(one["log_fold_change"], two["log_fold_change"], rtol=1e-3, atol=1e-3)
    # rounding breaks a few ties
    np.testing.assert_allclose(one["score"], two["score"], atol=0.03)


def test_several_conditions_each_against_the_control() -> None:
    adata = cells(900)
    adata.obs.loc[adata.obs["donor"].isin(["d5"]), "state"] = "other"
    table = run(adata)["markers"]
    assert set(table["condition"]) == {"ill", "other"}
    called = table.query("significant")
    assert set(PLANTED) <= set(called.query("condition == 'ill'")["gene"])
    assert (called["condition"] == "other").sum() <= 3, "by chance, of 180 tests in three families"


def test_what_is_left_behind(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    run(cells(), out, sample_key="donor")
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


def test_figures_of_others_stay(tmp_path: Path) -> None:
    figures = tmp_path / "figures"
    figures.mkdir()
    for name in ("umap_kind", "training", "heatmap"):
        (figures / f"{name}.png").write_bytes(b"old")
    adata = cells(60)
    run(adata, tmp_path, min_cells=1000)  # no gene is compared, so nothing is drawn of any
    assert {p.name for p in figures.iterdir()} == {
        "umap_kind.png",
        "training.png",
        "composition.png",
        "violin_modules.png",
    }
    assert (figures / "training.png").read_bytes() == b"old"


def test_a_condition_of_one_sample_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    """Differences of donors are not found because of a further condition that cannot be tested."""
    adata = cells(900, 40, planted=False, wobble=0.5, donors=8)
    adata.obs.loc[adata.obs["donor"] == "d7", "state"] = "single"
    adata.obs.loc[adata.obs["donor"] == "d3", ["state", "kind"]] = ["untyped", None]
    tables = run(adata, tmp_path, sample_key="donor")
    table = tables["markers"]
    single = table["condition"] == "single"
    assert set(table["condition"]) == {"ill", "single"}
    assert (table["p_samples"].isna() == single).all() and single.any()
    assert not table["significant"].any() and (table[single]["p_adjusted"] < 1e-6).any()
    alone = run(adata[adata.obs["state"].isin(["ill", "well"])].copy(), sample_key="donor")
    keys = ["cell_type", "gene", "p_samples", "p_samples_adjusted", "significant"]
    pd.testing.assert_frame_equal(
        table.loc[~single, keys].reset_index(drop=True), alone["markers"][keys]
    )
    shares = tables["composition"]
    assert set(shares["condition"]) == {"ill", "single"}
    assert shares["share_condition"].notna().all()
    assert not shares[shares["condition"] == "single"]["significant"].any()
    summary = json.loads((tmp_path / "compare.json").read_text())
    assert summary["tested_on"] == "samples" and summary["conditions"] == ["well", "ill", "single"]
    assert summary["tested"]["markers"] == (~single).sum()
    notes = "\n".join(summary["notes"])
    assert "fewer than two samples: single 1" in notes and "no cell is left" in notes
    assert "untyped" in notes and "genes and modules are not tested" not in notes


def test_types_of_one_sample_are_not_tested(tmp_path: Path) -> None:
    adata = cells(900, donors=6)
    ill_c = (adata.obs["kind"] == "c") & (adata.obs["state"] == "ill")
    adata = adata[~(ill_c & (adata.obs["donor"] != "d0"))].copy()
    table = run(adata, tmp_path, sample_key="donor", min_cells=5)["markers"]
    assert table.loc[table["cell_type"] == "c", "p_samples"].isna().all()
    rest = table[table["cell_type"] != "c"]
    for _, own in rest.groupby("cell_type"):
        np.testing.assert_allclose(
            own["p_samples_adjusted"], stats.false_discovery_control(own["p_samples"])
        )
    summary = json.loads((tmp_path / "compare.json").read_text())
    assert summary["tested"]["markers"] == len(rest) < len(table)
    assert any("fewer than two samples of a condition: c (ill)" in n for n in summary["notes"])


def test_sets_without_a_gene_are_skipped(tmp_path: Path) -> None:
    sets = {**SETS, "x": ["CD3E"], "y": ["CD8A"], "part": ["g1", "g2", "GONE", "AWAY"]}
    tables = run(cells(200), tmp_path, sets=sets)
    assert set(tables["modules"]["set"]) == {"planted", "other", "part"}
    notes = json.loads((tmp_path / "compare.json").read_text())["notes"]
    assert [n for n in notes if "gene sets" in n] == [
        "2 of 5 gene sets have no gene in the data and are left out",
        "2 genes of the gene sets are missing and left out: AWAY, GONE",
    ]


def test_nothing_significant_is_drawn_all_the_same(tmp_path: Path) -> None:
    run(cells(300, planted=False), tmp_path / "out", sets=None, log_fold_change=9.0)
    assert (tmp_path / "out/figures/heatmap.png").stat().st_size > 0
    assert not (tmp_path / "out/enrichment.tsv").exists()  # it would be empty


def test_enrichment_of_the_planted_set(tmp_path: Path) -> None:
    pytest.importorskip("gseapy")
    gmt = tmp_path / "sets.gmt"
    gmt.write_text("".join(f"{k}\tof a test\t{chr(9).join(v)}\n" for k, v in SETS.items()))
    adata = cells(1500)
    table = run(adata, sets=gmt)["enrichment"]
    table = table[(table["cell_type"] == "a") & (table["direction"] == "up")].set_index("set")
    assert table.loc["planted", "significant"] and not table.loc["other", "significant"]
    called = run(adata)["markers"].query("significant and cell_type == 'a' and log_fold_change > 0")
    expected = stats.hypergeom.sf(4, 60, 5, len(called))
    assert table.loc["planted", "p"] == pytest.approx(expected, rel=1e-6)


def test_without_gseapy_enrichment_is_left_out(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gseapy", None)
    assert len(run(cells(300), tmp_path / "out")["enrichment"]) == 0
    notes = json.loads((tmp_path / "out/compare.json").read_text())["notes"]
    assert any("pip install 'concerto_tf[enrichment]'" in note for note in notes)


def test_few_cells_and_few_samples_are_said(tmp_path: Path) -> None:
    adata = cells(300)
    adata.obs.loc[adata.obs_names[:3], "kind"] = "rare"
    adata.obs.loc[adata.obs_names[3:5], "state"] = None
    run(adata, tmp_path / "out", sample_key="state")
    summary = json.loads((tmp_path / "out/compare.json").read_text())
    text = "\n".join(summary["notes"])
    assert summary["tested_on"] == "cells"
    for words in ("2 cells without a condition", "too few samples", ": rare", "no replicates"):
        assert words in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"control": "wel"}, "no 'wel' in obs.'state'. .there: ill, well."),
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
def test_unsuitable_options_leave_nothing(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(cells(60), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_one_condition_is_nothing_to_compare() -> None:
    adata = cells(60)
    adata.obs["state"] = "ill"
    with pytest.raises(InputError, match=r"cells of one condition only \(ill\); give a file that"):
        run(adata)


def test_t_test_is_students() -> None:
    rng = np.random.default_rng(0)
    case, control = rng.normal(size=(3, 7)), rng.normal(1, 2, size=(4, 7))
    np.testing.assert_allclose(t_test(case, control), stats.ttest_ind(case, control).pvalue)
    assert np.isnan(t_test(case[:1], control)).all()
    assert np.isnan(t_test(np.ones((2, 1)), np.ones((2, 1)))).all()


def test_skewness_is_that_over_all_choices() -> None:
    from itertools import combinations

    values = np.array([0, 0, 0, 0, 0, 0, 1.0, 1, 2])
    sums = [stats.rankdata(values)[list(c)].sum() for c in combinations(range(9), 3)]
    found = rank_skewness(sp.csc_matrix(values[:, None]), 3)
    assert found[0] == pytest.approx(stats.skew(sums))
    assert rank_skewness(sp.csc_matrix((9, 1)), 3)[0] == 0


def test_p_without_skewness_is_normal() -> None:
    z = np.array([-2.0, 0.0, 1.0, 4.0])
    np.testing.assert_allclose(skewed_p(z, np.zeros(4)), 2 * stats.norm.sf(np.abs(z)))
    assert skewed_p(np.array([4.0]), np.ones(1)) > 10 * skewed_p(np.array([4.0]), np.zeros(1))


def test_each_type_is_a_family_of_tests_of_its_own() -> None:
    p = [0.01, 0.02, 0.5, 0.01, 0.04]
    table = adjust(pd.DataFrame({"p": p, "cell_type": list("aabbb")}), "p", by="cell_type")
    np.testing.assert_allclose(table["p_adjusted"], [0.02, 0.02, 0.5, 0.03, 0.06])


def test_a_gene_that_is_nowhere_in_a_condition_has_no_fold_change() -> None:
    adata = cells(800, planted=False)
    counts = adata.X.toarray()
    well = (adata.obs["state"] == "well").to_numpy()
    counts[well, 7] = 0
    counts[~well, 7] = np.random.default_rng(0).poisson(2.0, (~well).sum())
    adata.X = sp.csr_matrix(counts)
    found = run(adata)["markers"].query("gene == 'g7'")
    assert found["log_fold_change"].isna().all() and (found["share_control"] == 0).all()
    assert found["significant"].all(), "the p value alone decides"
    assert (found["score"] > 0).all()


def test_gene_without_fold_change_keeps_its_place(tmp_path: Path) -> None:
    """As genes of the Y chromosome between women and men."""
    adata = cells(300, 20)
    counts = adata.X.toarray()
    counts[:, 7] = np.where(adata.obs["state"] == "well", 0, 3)
    adata.X = sp.csr_matrix(counts)
    found = run(adata, tmp_path, sets=None)["markers"]
    assert found.query("gene == 'g7'")["log_fold_change"].isna().all()
    assert (tmp_path / "figures/heatmap.png").exists()
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "g7" in text
    none = fold_changes(found, ["g7"])
    assert list(none) == ["g7"] and none.isna().all(axis=None)
    heat_figure(found, ["g7"], "none", tmp_path / "none.png")


@pytest.mark.parametrize("wobble", [0.0, 0.4])
def test_power_and_false_discoveries_between_samples(wobble: float) -> None:
    """Planted effects of three times in five genes of a, of ten samples, beside PyDESeq2's own."""
    pytest.importorskip("pydeseq2")
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.ds import DeseqStats

    adata = cells(1500, genes=80, donors=10, wobble=wobble, seed=1)
    found = run(adata, sample_key="donor")["markers"]
    called = found.query("significant")
    hits = called.query("cell_type == 'a'")["gene"].isin(PLANTED).sum()
    wrong = len(called) - hits
    assert hits >= (5 if wobble == 0 else 3)
    assert wrong <= 2, "of 235 genes that do not change, at an alpha of 0.05"
    # The same counts summed by hand, by the package as its users call it.
    own = adata[adata.obs["kind"] == "a"]
    sums = pd.DataFrame(own.X.toarray(), columns=own.var_names).groupby(own.obs["donor"].to_numpy())
    counts = sums.sum().astype(int)
    state = own.obs.drop_duplicates("donor").set_index("donor")["state"].loc[counts.index]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = DeseqDataSet(
            counts=counts, metadata=state.to_frame(), design="~state", quiet=True, n_cpus=1
        )
        data.deseq2()
        told = DeseqStats(
            data, contrast=["state", "ill", "well"], independent_filter=False, quiet=True
        )
        told.summary()
    ours = found.query("cell_type == 'a'").set_index("gene")["p_samples"]
    theirs = told.results_df["pvalue"].loc[ours.index]
    np.testing.assert_allclose(ours, theirs, rtol=0.01, atol=1e-12)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are counted in /proc")
def test_pydeseq2_starts_no_processes() -> None:
    """They take longer to start than the fits take, and `--threads` would not hold them."""
    pytest.importorskip("pydeseq2")

    def children() -> set[str]:
        return set().union(
            *(f.read_text().split() for f in Path("/proc/self/task").glob("*/children"))
        )

    before = children()
    assert run(cells(200, 20), sample_key="donor", sets=None)["markers"]["p_samples"].notna().any()
    assert children() <= before


def test_ranked_sets_are_found_without_any_significant_gene() -> None:
    pytest.importorskip("gseapy")
    adata = cells(700, genes=200, planted=False, seed=3)
    rng = np.random.default_rng(0)
    ill = (adata.obs["state"] == "ill").to_numpy() & (adata.obs["kind"] == "a").to_numpy()
    counts, moved = adata.X.toarray(), list(range(40, 70))
    weak = rng.random((ill.sum(), len(moved))) < 0.22
    counts[np.ix_(ill, moved)] += weak
    adata.X = sp.csr_matrix(counts)
    sets = {"moved": [f"g{i}" for i in moved], "still": [f"g{i}" for i in range(100, 130)]}
    tables = run(adata, sets=sets)
    table = tables["gsea"].set_index(["cell_type", "set"])
    assert table.loc[("a", "moved"), "significant"] and table.loc[("a", "moved"), "score"] > 0
    assert not table["significant"].drop(("a", "moved")).any()
    assert {*table.loc[("a", "moved"), "genes"].split(";")} <= set(sets["moved"])


def test_without_pydeseq2_the_t_test_is_made_and_said(tmp_path: Path, monkeypatch) -> None:
    import concerto_tf.tasks.comparison.pseudobulk as pseudobulk

    monkeypatch.setattr(pseudobulk, "find_spec", lambda name: None)
    run(cells(300), tmp_path / "out", sample_key="donor")
    told = json.loads((tmp_path / "out/compare.json").read_text())
    assert told["genes_between_samples"] == "t-test of the samples' means"
    assert any("PyDESeq2 not installed" in note for note in told["notes"])


def test_adjusted_p_is_over_all_rows_that_have_one() -> None:
    table = adjust(pd.DataFrame({"p": [0.01, np.nan, 0.02, 0.5]}), "p")
    np.testing.assert_allclose(table["p_adjusted"], [0.03, np.nan, 0.03, 0.5])


def test_report_tells_what_was_found_and_by_which_tests(tmp_path: Path) -> None:
    run(cells(1500), tmp_path / "samples", sample_key="donor")
    text = (tmp_path / "samples" / "report.html").read_text("utf-8")
    for words in ("tests between samples", "ill compared with well", "g0", "log2 ratio", "planted"):
        assert words in text, words
    assert "sample_key = donor" in text and str(tmp_path) not in text
    run(cells(300), tmp_path / "cells", sets=None)
    text = (tmp_path / "cells" / "report.html").read_text("utf-8")
    assert "tests are on cells, which are no replicates" in text
    assert "no gene sets given" in text


def test_table_without_rows_is_not_written(tmp_path: Path) -> None:
    run(cells(300), tmp_path)
    assert (tmp_path / "modules.tsv").exists()
    run(cells(300), tmp_path, sets=None)
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


def test_figures_tell_what_they_rest_on(drawn: dict[str, Figure], tmp_path: Path) -> None:
    adata = cells(1500)
    adata.X[:, 3] = adata.X[:, 3].multiply(np.where(adata.obs["state"] == "ill", 500, 1)[:, None])
    run(adata, tmp_path, figure_format="svg")
    assert "no replicates" in said(drawn["composition.svg"])
    dots = said(drawn["dots.svg"])
    assert all(share in dots for share in ("25%", "50%", "100%", "expressing"))
    [image] = drawn["heatmap.svg"].axes[0].images
    low, high = image.get_clim()
    assert high == -low == np.nanmax(np.abs(image.get_array())) > 6
    run(adata, tmp_path, sample_key="donor")
    assert "no replicates" not in said(drawn["composition.png"])
    with pytest.raises(InputError, match="cannot be drawn as 'gif'; choose one of png, pdf, svg"):
        run(adata, tmp_path, figure_format="gif")
