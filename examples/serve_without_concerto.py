"""A trained model as a SavedModel, answered by a process that knows nothing but TensorFlow.

    python examples/serve_without_concerto.py              export a small model, then serve it
    python examples/serve_without_concerto.py FOLDER       only serve: needs TensorFlow alone

`concerto export MODEL -o FOLDER` writes such a folder from any trained model.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

import tensorflow as tf


def export(folder: str) -> None:
    """Trains a small model and exports it. This part needs concerto_tf."""
    import concerto_tf
    from concerto_tf.simulate import SplatParams, simulate_cells

    cells = simulate_cells(
        SplatParams.droplet(n_cells=512, n_genes=300, group_sizes=(2, 1), seed=0)
    )
    records = concerto_tf.convert(cells, tempfile.mkdtemp(), drop_empty=True)
    model = concerto_tf.Concerto.from_records(records, hidden_units=32)
    model.compile()
    model.fit(records.dataset(128, shuffle=True), epochs=3, verbose=0)
    concerto_tf.export(model, folder)


def serve(folder: str) -> None:
    """Answers with raw counts of two cells by gene name. This part needs only TensorFlow."""
    model = tf.saved_model.load(folder)
    answer = model.signatures["serving_default"](
        genes=tf.constant([["Gene1", "Gene7", "Gene42"], ["Gene3", "NoSuchGene", ""]]),
        values=tf.constant([[3.0, 1.0, 2.0], [5.0, 1.0, 0.0]]),
    )
    print("concerto_tf imported:", "concerto_tf" in sys.modules)
    print("embedding:", answer["embedding"].shape.as_list())
    print("share of unknown genes:", answer["unknown_genes"].numpy().tolist())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(sys.argv[1])
    else:
        served = f"{tempfile.mkdtemp()}/served"
        export(served)
        subprocess.run([sys.executable, __file__, served], check=True)
