"""Which genes place each cell type in the embedding, and which cells are cytotoxic.

    python examples/explain.py [FOLDER]

The model is trained without labels; the cell types only group the cells afterwards. Leaves
`signatures.tsv`, `signatures.png` and `scores.h5ad` in the folder. With `concerto_tf.train` the
model would be in the folder, too.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import concerto_tf
from concerto_tf.tasks.demo import demo_cells
from concerto_tf.tasks.explain import explain
from concerto_tf.tasks.score import score

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())

cells = demo_cells()  # or any AnnData of yours, raw counts in X
records = concerto_tf.convert(cells, folder / "records", label_keys=["bulk_labels"])
model = concerto_tf.Concerto.from_records(records)  # looks at all genes
model.compile()
model.fit(records.dataset(256, shuffle=True, repeat=True), steps_per_epoch=10, epochs=10, verbose=2)

table = explain(
    model,
    records,
    folder / "signatures.tsv",
    groupby="bulk_labels",
    figure=folder / "signatures.png",
)
for group, genes in table[table["rank"] <= 5].groupby("group", sort=False)["gene"]:
    print(f"{group}: {', '.join(genes)}")

# A score is relative to the cells given; genes that they lack are named and left out.
cytotoxic = {"cytotoxic": ["NKG7", "GNLY", "PRF1", "GZMB", "CTSW"]}
scores = score(cells, cytotoxic, folder / "scores.h5ad")["cytotoxic"]
by_type = scores.groupby(cells.obs["bulk_labels"].to_numpy()).mean().sort_values(ascending=False)
print(f"highest cytotoxic score: {by_type.index[0]}")
