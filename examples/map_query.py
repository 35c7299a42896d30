"""Labels of one data set carried over to another, and cells of a type it lacks left unknown.

    python examples/map_query.py

Half of 700 blood cells is the reference, without its dendritic cells; the other half is the query.
"""

from __future__ import annotations

import tempfile

import numpy as np

import concerto_tf
from concerto_tf.tasks.demo import LABEL_KEY, demo_cells
from concerto_tf.tasks.map import map as map_query

folder = tempfile.mkdtemp()
adata = demo_cells()
kind = adata.obs[LABEL_KEY].astype(str).to_numpy()
first = np.random.default_rng(0).random(adata.n_obs) < 0.5
reference = adata[first & (kind != "Dendritic")].copy()
query = adata[~first].copy()

records = concerto_tf.convert(reference, f"{folder}/records", label_keys=[LABEL_KEY])
model = concerto_tf.Concerto.from_records(records)
model.compile()
model.fit(records.dataset(128, shuffle=True, repeat=True), steps_per_epoch=10, epochs=10, verbose=0)

table = map_query(
    model,  # the path of a model that `concerto_tf.train` left would keep the reference beside it
    query,
    f"{folder}/query.h5ad",  # obs["concerto_label"], obs["concerto_confidence"]
    reference=records,
    label_key=LABEL_KEY,
    groupby=LABEL_KEY,
    figure=f"{folder}/relatives.png",
)

new = kind[~first] == "Dendritic"
print(f"right, of known types: {(table['predicted'] == kind[~first])[~new].mean():.2f}")
print(f"confidence, known types: {table['confidence'][~new].mean():.2f}")
print(f"confidence, new type: {table['confidence'][new].mean():.2f}")
nearest = next(row for row in table.attrs["relatives"] if row["group"] == "Dendritic")
print(f"the new type lies nearest to: {nearest['label']}")
