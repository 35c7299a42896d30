from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp


@pytest.fixture
def make_cells() -> Callable[..., anndata.AnnData]:
    """Makes cells with negative binomial counts, none of them empty."""

    def make(
        n_cells: int = 100, n_genes: int = 60, seed: int = 0, prefix: str = "CELL"
    ) -> anndata.AnnData:
        random = np.random.default_rng(seed)
        counts = random.negative_binomial(0.3, 0.1, (n_cells, n_genes))
        counts[np.arange(n_cells), random.integers(0, n_genes, n_cells)] += 1
        obs = pd.DataFrame(
            {
                "donor": random.choice(["old", "young"], n_cells),
                "type": pd.Categorical(random.choice(["B", "NK", "T"], n_cells)),
            },
            index=[f"{prefix}{i}" for i in range(n_cells)],
        )
        var = pd.DataFrame(index=[f"AB{i}C" for i in range(n_genes)])
        return anndata.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)

    return make


@pytest.fixture
def cells(make_cells: Callable[..., anndata.AnnData]) -> anndata.AnnData:
    """200 of these."""
    return make_cells(200)


@pytest.fixture
def file(make_cells: Callable[..., anndata.AnnData], tmp_path: Path) -> Path:
    """Cells in an `.h5ad`."""
    path = tmp_path / "cells.h5ad"
    make_cells(300).write_h5ad(path)
    return path
