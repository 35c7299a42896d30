"""Cells of known types and models of them, for what gives labels; cells ill and well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from concerto_tf.records import convert
from concerto_tf.tasks.compare import compare
from concerto_tf.tasks.finetune import finetune
from concerto_tf.tasks.train import train

_NAMES = np.array(["B", "NK", "T", "DC"])
_SMALL = {"units": 8, "hidden_units": 16, "attention_units": 4, "head_units": 6, "components": 5}


def _make_cells(n: int, seed: int = 0, kinds: int = 3) -> AnnData:
    """Cells of types, each with a plate that mostly holds it; two have no plate."""
    rng = np.random.default_rng(seed)
    profiles = np.random.default_rng(9).gamma(0.4, 3.0, (4, 40))
    kind = rng.integers(0, kinds, n)
    counts = rng.poisson(profiles[kind] * 2)
    counts[:, 0] += 1
    on = np.where(rng.random(n) < 0.8, kind, rng.integers(0, 3, n))
    plates = np.array([f"plate{code}" for code in on], object)
    plates[:2] = None
    coarse = np.where(kind == 0, "B", "other")
    obs = pd.DataFrame(
        {"type": _NAMES[kind], "coarse": coarse, "plate": plates, "donor": "a"},
        [f"cell{i}" for i in range(n)],
    )
    return AnnData(counts.astype("f4"), obs, pd.DataFrame(index=[f"AB{i}C" for i in range(40)]))


@pytest.fixture
def make_typed() -> Callable[..., AnnData]:
    """Makes more of the cells that `typed_cells` has a model of."""
    return _make_cells


@pytest.fixture(scope="session")
def typed_cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with records, a model of them, one that was fine-tuned, and a query."""
    folder = tmp_path_factory.mktemp("typed")
    records = convert(_make_cells(240, 0), folder / "records", label_keys=["type", "coarse"])
    train(records, folder / "model", genes="all", epochs=2, batch_size=50, options=_SMALL)
    options: dict[str, Any] = {"epochs": 10, "batch_size": 50, "learning_rate": 0.01}
    finetune(folder / "model", records, folder / "typed", label_key="type", **options)
    _make_cells(300, 1).write_h5ad(folder / "query.h5ad")
    return folder


def _ill_and_well(
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


@pytest.fixture
def ill_and_well() -> Callable[..., AnnData]:
    """Makes cells of two conditions, with effects that are known."""
    return _ill_and_well


@pytest.fixture
def compared() -> Callable[..., dict[str, pd.DataFrame]]:
    """Compares such cells, with a gene set that was planted and another."""

    def run(adata: AnnData, out: Path | None = None, **options: Any) -> dict[str, pd.DataFrame]:
        sets = {"planted": [f"g{i}" for i in range(5)], "other": [f"g{i}" for i in range(20, 30)]}
        keys = {"condition": "state", "control": "well", "label_key": "kind", "sets": sets}
        return compare(adata, out, **(keys | options))

    return run
