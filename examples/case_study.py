"""From counts to enriched gene sets in one script, as in CLEAR's case study of COVID-19.

    python examples/case_study.py [FOLDER]

Blood cells that come with scanpy are embedded by CLEAR and clustered, clusters are named by their
markers, and each type is compared between ill and healthy donors. Donors and illness are made up:
in monocytes of the ill, genes of the interferon response rise and those of MHC II fall.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from anndata.io import read_h5ad

import concerto_tf
from concerto_tf.tasks.demo import demo_cells

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
TYPES = {  # markers, by which clusters are named
    "monocyte": ["S100A8", "S100A9", "LYZ", "S100A6", "FTL"],
    "dendritic": ["FCER1A", "CLEC10A", "CST3", "HLA-DQA1", "HLA-DRA"],
    "B": ["CD79A", "CD79B", "MS4A1", "LINC00926", "TCL1A"],
    "NK": ["NKG7", "GNLY", "PRF1", "GZMB", "CD247"],
    "T": ["CD3D", "CD3E", "CD27", "IL32", "LDHB"],
}
SETS = {  # or the name of a GMT file
    "interferon response": ["IFITM1", "IFITM2", "IFITM3", "IRF7", "OAS1", "ISG20", "IFI30"],
    "MHC II": ["CD74", "HLA-DRA", "HLA-DRB1", "HLA-DPA1", "HLA-DPB1", "HLA-DMA", "HLA-DQB1"],
    "cytotoxicity": ["GZMA", "GZMB", "GZMH", "GZMK", "GZMM", "PRF1", "NKG7"],
}

cells = demo_cells()
rng = np.random.default_rng(0)
donor = rng.integers(0, 8, cells.n_obs)
cells.obs["donor"] = [f"donor{i}" for i in donor]
cells.obs["state"] = np.where(donor < 4, "ill", "healthy")
counts = cells.X.toarray()
changed = np.flatnonzero((cells.obs["bulk_labels"] == "CD14+ Monocyte") & (donor < 4))
for name, factor in {"interferon response": 3.0, "MHC II": 0.4}.items():
    at = np.ix_(changed, cells.var_names.get_indexer(SETS[name]))
    counts[at] = rng.poisson(counts[at] * factor)
cells.X = counts

# ---- from here
concerto_tf.run(cells, folder / "run", method="clear")
markers = pd.read_csv(folder / "run" / "markers.tsv", sep="\t")
result = read_h5ad(folder / "run" / "result.h5ad")
named = {
    str(cluster): max(TYPES, key=lambda name: of["gene"].isin(TYPES[name]).sum())
    for cluster, of in markers.groupby("cluster")
}
result.obs["type"] = result.obs["concerto_cluster"].astype(str).map(named)
tables = concerto_tf.compare(
    result,
    folder / "compared",
    condition="state",
    control="healthy",
    label_key="type",
    sample_key="donor",
    sets=SETS,
)
# ---- to here

for name in ("markers", "modules", "gsea"):  # the last needs gseapy
    if name in tables:
        found = tables[name][tables[name]["significant"]]
        listed = found["cell_type"] + ": " + found["gene" if name == "markers" else "set"]
        print(f"{name}: {', '.join(listed) or 'none'}")
