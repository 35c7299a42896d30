"""Tests between samples: their power and their errors, with PyDESeq2 and without."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

PLANTED = [f"g{i}" for i in range(5)]


def test_a_condition_of_one_sample_leaves_the_others_as_they_are(
    ill_and_well: Any, compared: Any, tmp_path: Path
) -> None:
    """Differences of donors are not found because of a further condition that cannot be tested."""
    adata = ill_and_well(900, 40, planted=False, wobble=0.5, donors=8)
    adata.obs.loc[adata.obs["donor"] == "d7", "state"] = "single"
    adata.obs.loc[adata.obs["donor"] == "d3", ["state", "kind"]] = ["untyped", None]
    tables = compared(adata, tmp_path, sample_key="donor")
    table = tables["markers"]
    single = table["condition"] == "single"
    assert set(table["condition"]) == {"ill", "single"}
    assert (table["p_samples"].isna() == single).all() and single.any()
    assert not table["significant"].any() and (table[single]["p_adjusted"] < 1e-6).any()
    alone = compared(adata[adata.obs["state"].isin(["ill", "well"])].copy(), sample_key="donor")
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


def test_types_of_one_sample_are_not_tested(
    ill_and_well: Any, compared: Any, tmp_path: Path
) -> None:
    adata = ill_and_well(900, donors=6)
    ill_c = (adata.obs["kind"] == "c") & (adata.obs["state"] == "ill")
    adata = adata[~(ill_c & (adata.obs["donor"] != "d0"))].copy()
    table = compared(adata, tmp_path, sample_key="donor", min_cells=5)["markers"]
    assert table.loc[table["cell_type"] == "c", "p_samples"].isna().all()
    rest = table[table["cell_type"] != "c"]
    for _, own in rest.groupby("cell_type"):
        np.testing.assert_allclose(
            own["p_samples_adjusted"], stats.false_discovery_control(own["p_samples"])
        )
    summary = json.loads((tmp_path / "compare.json").read_text())
    assert summary["tested"]["markers"] == len(rest) < len(table)
    assert any("fewer than two samples of a condition: c (ill)" in n for n in summary["notes"])


@pytest.mark.parametrize("wobble", [0.0, 0.4])
def test_power_and_false_discoveries_between_samples(
    ill_and_well: Any, compared: Any, wobble: float
) -> None:
    """Planted effects of three times in five genes of a, of ten samples, beside PyDESeq2's own."""
    pytest.importorskip("pydeseq2")
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.ds import DeseqStats

    adata = ill_and_well(1500, genes=80, donors=10, wobble=wobble, seed=1)
    found = compared(adata, sample_key="donor")["markers"]
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
def test_pydeseq2_starts_no_processes(compared: Any, ill_and_well: Any) -> None:
    """They take longer to start than the fits take, and `--threads` would not hold them."""
    pytest.importorskip("pydeseq2")

    def children() -> set[str]:
        return set().union(
            *(f.read_text().split() for f in Path("/proc/self/task").glob("*/children"))
        )

    before = children()
    assert (
        compared(ill_and_well(200, 20), sample_key="donor", sets=None)["markers"]["p_samples"]
        .notna()
        .any()
    )
    assert children() <= before


def test_without_pydeseq2_the_t_test_is_made_and_said(
    compared: Any, ill_and_well: Any, tmp_path: Path, monkeypatch
) -> None:
    import concerto_tf.tasks.comparison.pseudobulk as pseudobulk

    monkeypatch.setattr(pseudobulk, "find_spec", lambda name: None)
    compared(ill_and_well(300), tmp_path / "out", sample_key="donor")
    told = json.loads((tmp_path / "out/compare.json").read_text())
    assert told["genes_between_samples"] == "t-test of the samples' means"
    assert any("PyDESeq2 not installed" in note for note in told["notes"])
