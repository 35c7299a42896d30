"""What differs between conditions, cell type by cell type, tested between donors.

    python examples/compare.py [FOLDER]

The cells are simulated; in one of two types, ten genes rise in the treated donors. Leaves tables
and figures in the folder.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import concerto_tf
from concerto_tf.simulate import SplatParams, simulate_cells

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())

cells = simulate_cells(SplatParams.droplet(n_cells=1_500, n_genes=300, group_sizes=(1, 1)))
rng = np.random.default_rng(0)
donor = rng.integers(0, 6, cells.n_obs)
cells.obs["donor"] = [f"donor{i}" for i in donor]
cells.obs["given"] = np.where(donor < 3, "drug", "placebo")
risen = list(cells.var.sort_values("mean").index[-60:-50])
treated = ((donor < 3) & (cells.obs["group"] == "Group1")).to_numpy()
dense = cells.X.toarray()
dense[np.ix_(treated, cells.var_names.get_indexer(risen))] *= 3
cells.X = dense

tables = concerto_tf.compare(
    cells,
    folder,
    condition="given",
    control="placebo",
    label_key="group",
    sample_key="donor",
    sets={"risen": risen},  # or the name of a GMT file
)
for name in ("composition", "markers", "modules"):
    found = tables[name][tables[name]["significant"]]
    where = ", ".join(found["cell_type"].unique()) or "none"
    print(f"{name}: {len(found)} significant, in {where}")
