"""Small records to be harmed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from concerto_tf import Records, convert

#: What came of every case of the suite; said in one line at the end.
OUTCOMES = ("noticed", "harmless", "lost", "silent", "tracebacks", "hangs")
_counted: Counter[str] = Counter()
VICTIM = Path(__file__).with_name("victim.py")


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


class Victim:
    """The program that runs commands and kills them."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(VICTIM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=VICTIM.parents[2],
            env={**os.environ, "PYTHONPATH": str(VICTIM.parents[2])},
        )

    def __call__(
        self,
        *arguments: Any,
        folder: Path,
        event: int | None = None,
        seconds: float | None = None,
        rival: Sequence[Any] | None = None,
    ) -> dict[str, Any]:
        order = {
            "arguments": [str(part) for part in arguments],
            "folder": str(folder),
            "event": event,
            "seconds": seconds,
            "rival": rival and [str(part) for part in rival],
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)


@pytest.fixture(scope="session")
def victim() -> Iterator[Victim]:
    started = Victim()
    yield started
    started.close()


@pytest.fixture(scope="session")
def given(victim: Victim, cells, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cells, records and a model. Not to be changed."""
    folder = tmp_path_factory.mktemp("given")
    cells.write_h5ad(folder / "cells.h5ad")
    for command in (
        [
            "convert",
            folder / "cells.h5ad",
            "-o",
            folder / "records",
            "--shards",
            2,
            "--label-key",
            "kind",
        ],
        ["train", folder / "records", "-o", folder / "model", "--epochs", 1],
    ):
        assert victim(*command, "--quiet", folder=folder)["code"] == 0
    return folder


@pytest.fixture(scope="session")
def count() -> Callable[[str], None]:
    """Counts a case by what came of it."""

    def add(outcome: str) -> None:
        assert outcome in OUTCOMES
        _counted[outcome] += 1

    return add


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line: cases, and what came of them. The goal is none of the last four."""
    if _counted:
        found = ", ".join(f"{_counted[name]} {name}" for name in OUTCOMES)
        terminalreporter.write_line(f"faults: {sum(_counted.values())} cases, {found}")
