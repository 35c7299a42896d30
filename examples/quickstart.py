"""From cells in memory to embedding, clusters and UMAP, with Keras' own `model.fit`.

    python examples/quickstart.py [OUT.h5ad]

The ten lines are those between the two marks. `concerto_tf.run` does the same in one call, chooses
genes and length of training by the data's size, and resumes after a stop.
"""

from __future__ import annotations

import sys
import tempfile

import concerto_tf
from concerto_tf.tasks.demo import demo_cells
from concerto_tf.tasks.neighbours import umap

folder = tempfile.mkdtemp()
out = sys.argv[1] if len(sys.argv) > 1 else f"{folder}/quickstart.h5ad"

# ---- from here
adata = demo_cells()  # or any AnnData of yours, raw counts in X
records = concerto_tf.convert(adata, f"{folder}/records")
model = concerto_tf.Concerto.from_records(records)
model.compile()
model.fit(records.dataset(256, shuffle=True, repeat=True), steps_per_epoch=10, epochs=10, verbose=2)
adata.obsm["X_concerto"] = model.embed(records.dataset(256))
concerto_tf.cluster(adata)
umap(adata)
adata.write_h5ad(out)
# ---- to here

print(concerto_tf.evaluate(adata, label_key="bulk_labels"))
print(f"{adata.n_obs} cells, {adata.obs['concerto_cluster'].nunique()} clusters: {out}")
