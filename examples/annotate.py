"""From labelled cells to the types of new ones, `unknown` where they are of a type never seen.

    python examples/annotate.py [OUT.h5ad]

Real cells that come with a dependency: blood cells of ten types. One type is kept from the
reference, to see what becomes of it.
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np

from concerto_tf.records import convert
from concerto_tf.tasks.annotate import agreement_of, annotate
from concerto_tf.tasks.demo import demo_cells
from concerto_tf.tasks.finetune import finetune
from concerto_tf.tasks.train import train

folder = tempfile.mkdtemp()
out = sys.argv[1] if len(sys.argv) > 1 else f"{folder}/annotated.h5ad"

cells = demo_cells()
labels = cells.obs["bulk_labels"].astype(str).to_numpy()
new = (np.arange(cells.n_obs) % 4 == 0) | (labels == "CD19+ B")
reference, query = cells[~new].copy(), cells[new].copy()

# Pre-training sees no label, fine-tuning those of the reference; a fifth of its cells is held out
# to calibrate the confidence on.
records = convert(reference, f"{folder}/records", label_keys=["bulk_labels"])
model = train(records, f"{folder}/pretrained")
model = finetune(model, records, f"{folder}/model", label_key="bulk_labels")

table = annotate(model, query, out, alpha=0.05)
found = agreement_of(table, labels[new], model.classes)
print(f"types told: {found['accuracy']:.3f} of {found['cells']} cells of known types")
print(f"rejected: {found['rejected_seen']:.3f} of these")
print(f"rejected: {found['rejected_unseen']:.3f} of {found['cells_unseen']} B cells, never seen")
print(f"confidence tells the two apart with AUROC {found['auroc']:.3f}: {out}")
