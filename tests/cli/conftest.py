"""The command line, called in this process or in one of its own, and cells to call it on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

COMMAND = [sys.executable, "-m", "concerto_tf.cli"]
# What only finished work may leave.
FINISHED = ("manifest.json", "model.keras", "result.h5ad", "metrics.json", "saved_model.pb")


@pytest.fixture(scope="session")
def started() -> Callable[..., subprocess.Popen]:
    """Starts a command line in a process of its own."""

    def start(*arguments: Any, **options: Any) -> subprocess.Popen:
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            **options,
        )

    return start


@pytest.fixture(scope="session")
def leftover() -> Callable[[Path], list[str]]:
    """Names in a folder that only finished work may leave, and half-written files."""

    def find(folder: Path) -> list[str]:
        names = [path.name for path in folder.rglob("*")] if folder.exists() else []
        return [name for name in names if name in FINISHED or name.startswith(".tmp-")]

    return find


@pytest.fixture(scope="session")
def make_cells() -> Callable[..., AnnData]:
    """Makes cells as those of `cells_file`."""
    return cells


def cells(n_cells: int = 60, n_genes: int = 40, seed: int = 0) -> AnnData:
    """Counts of three groups of cells from two batches, with more annotation than we need."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, n_cells)
    profiles = rng.gamma(1.0, 2.0, (3, n_genes))
    counts = rng.poisson(profiles[group]).astype("float32")
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([f"type{i}" for i in group]),
            "batch": [("first", "second")[i % 2] for i in range(n_cells)],
            "age": rng.normal(size=n_cells),
        },
        index=[f"cell{i}" for i in rng.permutation(n_cells)],
    )
    var = pd.DataFrame({"length": rng.normal(size=n_genes)}, [f"AB{i}C" for i in range(n_genes)])
    adata = AnnData(sp.csr_matrix(counts), obs, var)
    adata.layers["scaled"] = (counts - counts.mean(0)).astype("float32")
    adata.obsm["X_spatial"] = rng.normal(size=(n_cells, 2))
    adata.uns["study"] = {"name": "test", "year": 2024}
    return adata


@pytest.fixture(scope="session")
def cells_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 cells x 40 genes. Not to be changed."""
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    cells().write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, concerto: Callable[..., Any], cells_file: Path
) -> tuple[Path, Any]:
    """The folder of a finished run on `cells_file`, and its answer. Not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    answer = concerto(
        "run",
        cells_file,
        "-o",
        out,
        *"--label-key cell_type --source-key batch --epochs 1 --json".split(),
    )
    assert answer.code == 0, answer
    return out, answer


@pytest.fixture(scope="session")
def model(finished: tuple[Path, Any]) -> Path:
    return finished[0] / "model"


@pytest.fixture(scope="session")
def records(finished: tuple[Path, Any]) -> Path:
    return finished[0] / "records"
