"""What looks unfiltered is said, and what is clean is not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from concerto_tf.records import convert
from concerto_tf.records.conversion.quality import cell_figures

N_CELLS, N_GENES = 200, 12_000


def make(
    n_genes: np.ndarray | int = 800, mitochondrial: np.ndarray | float = 0.03, of: int = N_GENES
) -> ad.AnnData:
    """Cells of so many genes each, with such shares of counts from MT-ND1, and 10 counts a gene."""
    rng = np.random.default_rng(0)
    sizes = np.broadcast_to(n_genes, N_CELLS)
    counts = sp.lil_matrix((N_CELLS, of), dtype=np.float32)
    for row, size in enumerate(sizes):
        counts[row, 1 + rng.choice(of - 1, size - 1, replace=False)] = 10
    share = np.broadcast_to(mitochondrial, N_CELLS)
    counts[:, 0] = np.rint(10 * (sizes - 1) * share / (1 - share))[:, None]
    cells = ad.AnnData(counts.tocsr())
    cells.var_names = ["MT-ND1", *(f"AB{i}C" for i in range(of - 1))]
    return cells


def told(cells: ad.AnnData, tmp_path: Path) -> list[str]:
    return convert(cells, tmp_path / "r", chunk_cells=70, drop_empty=True).report.get(
        "warnings", []
    )


def some(share: float, these: Any, others: Any) -> np.ndarray:
    return np.where(np.arange(N_CELLS) < share * N_CELLS, these, others)


def test_clean_cells_are_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert told(make(), tmp_path) == []
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            lambda: make(mitochondrial=some(0.1, 0.3, 0.04)),
            "10% have 20% or more mitochondrial counts (median 4%)",
        ),
        (
            lambda: make(mitochondrial=some(0.02, 0.7, 0.04)),
            "2% have 50% or more mitochondrial counts (median 4%)",
        ),
        (lambda: make(some(0.05, 120, 800)), "5% of the cells have fewer than 200 genes"),
        (lambda: make(some(0.6, 20, 800)), "60% of the cells have fewer than 50 genes"),
    ],
)
def test_unfiltered(
    cells: Any, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = (
        f"AnnData: looks unfiltered: {message}; no column of obs tells doublets; leave out empty "
        "droplets, dying cells and doublets first, unless this tissue is so"
    )
    assert told(cells(), tmp_path) == [line]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [line]


@pytest.mark.parametrize(
    "cells",
    [
        lambda: make(some(0.9, 120, 250)),  # an assay that sees few genes
        lambda: make(some(0.05, 120, 800), of=5_000),  # a panel or a selection
        lambda: make(mitochondrial=some(0.03, 0.25, 0.1)),
        lambda: make(mitochondrial=0),  # nuclei
    ],
)
def test_what_is_so_by_nature(cells: Any, tmp_path: Path) -> None:
    assert told(cells(), tmp_path) == []


def test_doublets_that_were_called(tmp_path: Path) -> None:
    cells = make()
    cells.obs["doublet_score"] = np.linspace(0, 1, N_CELLS)
    assert told(cells, tmp_path / "score") == []
    cells.obs["predicted_doublet"] = some(0.05, True, False)
    [line] = told(cells, tmp_path / "called")
    assert "looks unfiltered: 10 are called doublets in obs['predicted_doublet']; leave" in line
    cells.obs["predicted_doublet"] = pd.Categorical(["Singlet"] * N_CELLS)
    assert told(cells, tmp_path / "none") == []


def test_normalized_values_and_symbols(tmp_path: Path) -> None:
    cells = make(mitochondrial=some(0.1, 0.3, 0.04))
    cells.var["feature_name"] = cells.var_names
    cells.var_names = [f"ENSG{i:011d}" for i in range(N_GENES)]
    assert len(told(cells, tmp_path / "symbols")) == 1
    cells.X = sp.csr_matrix(np.log1p(cells.X / cells.X.sum(axis=1) * 1e4))
    assert told(cells, tmp_path / "normalized") == []


def test_names_of_mitochondrial_genes() -> None:
    for name in ("MT-CO1", "mt-Nd1", "MT.ATP6", "GRCh38_MT-ND1", "mt:ND1"):
        assert "mitochondrial" in cell_figures(sp.csr_matrix([[1.0]]), [name])
    for name in ("MTOR", "MT1X", "MT2A", "AMT-X", "Mt1"):
        assert "mitochondrial" not in cell_figures(sp.csr_matrix([[1.0]]), [name])


@pytest.mark.parametrize("name", ["pbmc3k", "cellbench_cell_lines", "worm_neuron"])
def test_published_sets_are_not_warned_of(name: str, shared_data: Path, tmp_path: Path) -> None:
    records = convert(shared_data / f"{name}.h5ad", tmp_path / "r")
    assert "warnings" not in records.report
