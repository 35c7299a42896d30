"""Surface proteins of cells whose RNA alone was measured, from cells that have both.

    python examples/impute.py

Counts of five groups of cells are simulated, with three proteins that follow the group.
"""

from __future__ import annotations

import tempfile

import numpy as np
import pandas as pd

import concerto_tf
from concerto_tf.simulate import SplatParams, simulate_cells
from concerto_tf.tasks.impute import impute

if __name__ == "__main__":
    folder = tempfile.mkdtemp()
    cells = simulate_cells(
        SplatParams(n_cells=1000, n_genes=1000, group_sizes=(0.2,) * 5, de_scale=0.5)
    )
    rng = np.random.default_rng(0)
    group = cells.obs["group"].astype("category").cat.codes.to_numpy()
    level = rng.gamma(1.0, 40.0, (5, 3))[group]
    proteins = pd.DataFrame(rng.poisson(level + 1), cells.obs_names, ["CD3", "CD19", "CD14"])

    reference, query = cells[:700].copy(), cells[700:].copy()
    reference.obsm["protein"] = proteins.iloc[:700]
    records = concerto_tf.convert(
        reference, f"{folder}/records", modalities={"protein": "obsm:protein"}
    )
    model = concerto_tf.Concerto.from_records(records, modalities=["rna"])
    model.compile()
    cells_of_rna = records.dataset(256, shuffle=True, repeat=True, modalities=["rna"])
    model.fit(cells_of_rna, steps_per_epoch=10, epochs=10, verbose=0)

    table = impute(model, query, f"{folder}/query.h5ad", reference=records)["protein"]

    truth = np.log1p(proteins.iloc[700:] * 1e4 / proteins.iloc[700:].sum(1).to_numpy()[:, None])
    for name in table:
        print(f"{name}: correlation {np.corrcoef(table[name], truth[name])[0, 1]:.2f}")
    print(f"units: {table.attrs['units']}")
