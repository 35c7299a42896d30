from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

TOOLS = Path(__file__).parents[2] / "tools"
GENES = [f"AB{i}C" for i in range(40)]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs one of tools/ by its name, with arguments, and gives its return code."""

    def run(name: str, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        return runpy.run_path(str(TOOLS / name))["main"]()

    return run


@pytest.fixture(scope="session")
def make_cells() -> Callable[..., AnnData]:
    """Makes cells of types with genes of their own, in sources with an effect of their own."""

    def make(sizes: dict[tuple[str, str], int], seed: int = 0) -> AnnData:
        """``sizes``: number of cells by type and source."""
        types = sorted({kind for kind, _ in sizes})
        sources = sorted({source for _, source in sizes})
        fixed = np.random.default_rng(5)
        base = fixed.gamma(1.0, 2.0, len(GENES))
        effect = {source: fixed.uniform(0.4, 2.0, len(GENES)) for source in sources}
        rng = np.random.default_rng(seed)
        rows, obs = [], []
        for (kind, source), n in sizes.items():
            mean = base * effect[source]
            own = 6 * types.index(kind)
            mean[own : own + 4] += 20
            rows.append(rng.poisson(mean, (n, len(GENES))))
            obs += [(kind, source)] * n
        order = rng.permutation(len(obs))
        cells = AnnData(np.concatenate(rows)[order].astype("float32"))
        cells.var_names = GENES
        frame = pd.DataFrame(obs, columns=["kind", "donor"]).iloc[order].astype("category")
        cells.obs = frame.set_index(pd.Index([f"cell{i}" for i in range(len(obs))]))
        return cells

    return make


@pytest.fixture(scope="session")
def quick() -> dict[str, object]:
    """Arguments of a training that takes a moment."""
    small = {
        "units": 8,
        "hidden_units": 12,
        "attention_units": 4,
        "head_units": 8,
        "components": 4,
    }
    return {"genes": "all", "epochs": 4, "batch_size": 32, "options": small}
