"""Small records to be harmed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from concerto_tf import Records, convert


def counts(n_cells: int = 90, n_genes: int = 30, seed: int = 0) -> AnnData:
    """Counts of two sources with labels, of which every cell has some."""
    rng = np.random.default_rng(seed)
    values = rng.poisson(0.7, (n_cells, n_genes)).astype("float32")
    values[:, 0] += 1
    obs = pd.DataFrame(
        {
            "batch": np.array(["a", "b"])[np.arange(n_cells) % 2],
            "kind": np.array(["T", "B", "NK"])[np.arange(n_cells) % 3],
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"AB{i}C" for i in range(n_genes)])
    return AnnData(sp.csr_matrix(values), obs, var)


@pytest.fixture(scope="session")
def cells() -> AnnData:
    return counts()


@pytest.fixture(scope="session", params=["none", "gzip"])
def whole(request, cells: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Records:
    """Records of three shards, plain and gzipped. Not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "records"
    return convert(
        cells, folder, source_key="batch", label_keys=["kind"], shards=3, compression=request.param
    )


@pytest.fixture
def copied(whole: Records, tmp_path: Path) -> Callable[[], Path]:
    """Makes a fresh copy of the records, in the same place every time."""

    def copy() -> Path:
        shutil.rmtree(tmp_path / "records", ignore_errors=True)
        return Path(shutil.copytree(whole.path, tmp_path / "records"))

    return copy
