"""The command line, called in this process or in one of its own, and cells to call it on."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from concerto_tf.cli import main

COMMAND = [sys.executable, "-m", "concerto_tf.cli"]
# What only finished work may leave.
FINISHED = ("manifest.json", "model.keras", "result.h5ad", "metrics.json", "saved_model.pb")


@dataclass(frozen=True)
class Answer:
    """What a command gave back."""

    code: int
    out: str
    err: str

    def mendable(self, *words: str) -> None:
        """Asserts that a quiet command said in one or two lines what the user can mend."""
        assert self.code == 2, self
        assert self.out == ""
        lines = self.err.splitlines()
        assert 1 <= len(lines) <= 2 and lines[0].startswith("concerto"), self.err
        assert "Traceback" not in self.err and "a fault of ours" not in self.err
        for word in words:
            assert word in self.err, f"{word!r} is not in {self.err!r}"

    @property
    def last(self) -> dict[str, Any]:
        """The JSON object that stdout ends with."""
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture(scope="session")
def concerto() -> Callable[..., Answer]:
    """Runs a command line in this process."""

    def call(*arguments: Any, stderr: IO[str] | None = None) -> Answer:
        out, err = io.StringIO(), stderr or io.StringIO()
        with _process_kept(), warnings.catch_warnings(), contextlib.redirect_stdout(out):
            with contextlib.redirect_stderr(err):
                code = main([str(argument) for argument in arguments])
        return Answer(code, out.getvalue(), "" if stderr else err.getvalue())

    return call


@contextlib.contextmanager
def _process_kept() -> Iterator[None]:
    """What `main` does to the logger and the interpreter is for a process of its own."""
    log = logging.getLogger("concerto_tf")
    before = log.handlers, log.level, log.propagate
    hooks = sys.excepthook, sys.unraisablehook
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = hooks
        log.handlers, log.propagate = before[0], before[2]
        log.setLevel(before[1])


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
    tmp_path_factory: pytest.TempPathFactory, concerto: Callable[..., Answer], cells_file: Path
) -> tuple[Path, Answer]:
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
def model(finished: tuple[Path, Answer]) -> Path:
    return finished[0] / "model"


@pytest.fixture(scope="session")
def records(finished: tuple[Path, Answer]) -> Path:
    return finished[0] / "records"
