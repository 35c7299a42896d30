"""Gene sets of a comparison: enrichment of what is significant, and of the whole ranking."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

SETS = {"planted": [f"g{i}" for i in range(5)], "other": [f"g{i}" for i in range(20, 30)]}


def test_enrichment_of_the_planted_set(ill_and_well: Any, compared: Any, tmp_path: Path) -> None:
    pytest.importorskip("gseapy")
    gmt = tmp_path / "sets.gmt"
    gmt.write_text("".join(f"{k}\tof a test\t{chr(9).join(v)}\n" for k, v in SETS.items()))
    adata = ill_and_well(1500)
    table = compared(adata, sets=gmt)["enrichment"]
    table = table[(table["cell_type"] == "a") & (table["direction"] == "up")].set_index("set")
    assert table.loc["planted", "significant"] and not table.loc["other", "significant"]
    called = compared(adata)["markers"].query(
        "significant and cell_type == 'a' and log_fold_change > 0"
    )
    expected = stats.hypergeom.sf(4, 60, 5, len(called))
    assert table.loc["planted", "p"] == pytest.approx(expected, rel=1e-6)


def test_without_gseapy_enrichment_is_left_out(
    compared: Any, ill_and_well: Any, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "gseapy", None)
    assert len(compared(ill_and_well(300), tmp_path / "out")["enrichment"]) == 0
    notes = json.loads((tmp_path / "out/compare.json").read_text())["notes"]
    assert any("pip install 'concerto_tf[enrichment]'" in note for note in notes)


def test_ranked_sets_are_found_without_any_significant_gene(
    ill_and_well: Any, compared: Any
) -> None:
    pytest.importorskip("gseapy")
    adata = ill_and_well(700, genes=200, planted=False, seed=3)
    rng = np.random.default_rng(0)
    ill = (adata.obs["state"] == "ill").to_numpy() & (adata.obs["kind"] == "a").to_numpy()
    counts, moved = adata.X.toarray(), list(range(40, 70))
    weak = rng.random((ill.sum(), len(moved))) < 0.22
    counts[np.ix_(ill, moved)] += weak
    adata.X = sp.csr_matrix(counts)
    sets = {"moved": [f"g{i}" for i in moved], "still": [f"g{i}" for i in range(100, 130)]}
    tables = compared(adata, sets=sets)
    table = tables["gsea"].set_index(["cell_type", "set"])
    assert table.loc[("a", "moved"), "significant"] and table.loc[("a", "moved"), "score"] > 0
    assert not table["significant"].drop(("a", "moved")).any()
    assert {*table.loc[("a", "moved"), "genes"].split(";")} <= set(sets["moved"])
