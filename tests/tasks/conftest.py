"""Cells of known types and models of them, for the tasks that give labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf.records import convert
from concerto_tf.tasks.finetune import finetune
from concerto_tf.tasks.train import train

_NAMES = np.array(["B", "NK", "T"])
_SMALL = {"units": 8, "hidden_units": 16, "attention_units": 4, "head_units": 6, "components": 5}


def _make_cells(n: int, seed: int) -> AnnData:
    """Cells of three types, each with a plate that mostly holds it; two have no plate."""
    rng = np.random.default_rng(seed)
    profiles = np.random.default_rng(9).gamma(0.4, 3.0, (3, 40))
    kind = rng.integers(0, 3, n)
    counts = rng.poisson(profiles[kind] * 2)
    counts[:, 0] += 1
    on = np.where(rng.random(n) < 0.8, kind, rng.integers(0, 3, n))
    plates = np.array([f"plate{code}" for code in on], object)
    plates[:2] = None
    coarse = np.where(kind == 0, "B", "other")
    obs = pd.DataFrame(
        {"type": _NAMES[kind], "coarse": coarse, "plate": plates}, [f"cell{i}" for i in range(n)]
    )
    return AnnData(counts.astype("f4"), obs, pd.DataFrame(index=[f"AB{i}C" for i in range(40)]))


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
