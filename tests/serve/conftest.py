"""A small model with a reference beside it, and its cells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf.models import Concerto, save_model
from concerto_tf.models.saving import FILE_NAME
from concerto_tf.tasks.embed import embed
from concerto_tf.tasks.map import map as map_to

GENES = [f"AB{i}C" for i in range(40)]


@dataclass(frozen=True)
class Model:
    """A folder with a model, cells, and their embeddings by it."""

    folder: Path
    cells: AnnData
    embeddings: np.ndarray


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 60)
    counts = rng.poisson(np.random.default_rng(9).gamma(0.5, 4.0, (2, 40))[kind])
    counts[:, 0] += 1
    obs = pd.DataFrame({"type": np.array(["B", "T"])[kind]}, [f"c{i}" for i in range(60)])
    cells = AnnData(counts.astype("f4"), obs, pd.DataFrame(index=GENES))
    folder = tmp_path_factory.mktemp("served") / "model"
    folder.mkdir()
    made = Concerto(GENES, units=8, hidden_units=8, attention_units=4)
    made.started.assign(1)
    save_model(made, folder / FILE_NAME)
    map_to(folder, cells, reference=cells, label_key="type")
    return Model(folder, cells, embed(folder, cells))
