from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from concerto_tf.models import Concerto

N_GENES = 30


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., dict[str, np.ndarray]]:
    """Makes a batch of cells of three kinds and two sources, padded as records give it."""

    def make(n: int = 32, n_genes: int = N_GENES, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        profiles = np.random.default_rng(99).gamma(0.5, 2.0, (3, n_genes))
        source = (np.arange(n) % 3 == 0).astype(np.int32)  # 1/3 and 2/3
        counts = rng.poisson(profiles[rng.integers(0, 3, n)] * (1 + 2 * source[:, None]))
        counts[:, 0] += 1
        places = [np.flatnonzero(cell) for cell in counts]
        width = max(map(len, places)) + 2
        genes = np.zeros((n, width), np.int32)
        values = np.zeros((n, width), np.float32)
        for i, at in enumerate(places):
            genes[i, : len(at)], values[i, : len(at)] = at, counts[i, at]
        return {
            "genes": genes,
            "values": values,
            "total": values.sum(1),
            "source": source,
            "row": np.arange(n, dtype=np.int64),
        }

    return make


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Concerto]:
    """Makes a small Concerto for the cells of `make_batch`."""

    def make(n_genes: int = N_GENES, **arguments: Any) -> Concerto:
        small = {
            "units": 8,
            "hidden_units": 8,
            "attention_units": 4,
            "head_units": 6,
            "components": 0,
        }
        names = [f"G{i}" for i in range(n_genes)]
        return Concerto(names, **{"sources": ("a", "b"), **small, **arguments})

    return make
