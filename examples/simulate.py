"""Cells with a known truth, of any number: as records to train on, and as an .h5ad to look at.

    python examples/simulate.py [FOLDER]

Counts are drawn as they are written, so a million cells take no more memory than these.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import concerto_tf
from concerto_tf.simulate import SplatParams

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())

groups = SplatParams.droplet(
    n_cells=3_000, n_genes=2_000, group_sizes=(3, 2, 1), batch_sizes=(1, 1), de_prob=0.2, seed=1
)
records = concerto_tf.simulate(groups, folder / "records")
print(f"records: {records.n_cells} cells of {len(records.labels['group'])} groups")

# A trajectory that branches: the second and third path begin where the first one ends.
paths = SplatParams.droplet(
    n_cells=1_000, n_genes=2_000, group_sizes=(1, 1, 1), paths=True, path_from=(0, 1, 1)
)
print(f"h5ad: {concerto_tf.simulate(paths, folder / 'paths.h5ad').name}")
