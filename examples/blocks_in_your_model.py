"""The layers and the loss of this package in Keras models of somebody else.

    python examples/blocks_in_your_model.py

1. A classifier from standard Keras parts, in which a cell is read by `GeneAttention`, normalized
   within its batch by `SourceBatchNormalization`.
2. The same encoder trained without labels, by NT-Xent between two random views of each cell.

The cells are simulated: three groups, two batches.
"""

from __future__ import annotations

import tempfile

import tensorflow as tf

import concerto_tf
from concerto_tf.simulate import SplatParams, simulate_cells

keras = tf.keras


def make_encoder(n_genes: int, n_sources: int) -> keras.Model:
    """Raw counts of the expressed genes, padded, to a vector per cell."""
    cells = {
        "genes": keras.Input([None], dtype="int32", name="genes"),
        "values": keras.Input([None], name="values"),
        "source": keras.Input([], dtype="int32", name="source"),
    }
    values = concerto_tf.LogNormalize()(cells["values"])
    values = concerto_tf.RandomMask(0.3, rescale=False)(values)
    x = concerto_tf.GeneAttention(n_genes, units=32)(cells["genes"], values)
    x = concerto_tf.SourceBatchNormalization(n_sources)(x, source=cells["source"])
    return keras.Model(cells, keras.layers.Dense(32, activation="relu")(x))


class TwoViews(keras.Model):
    """An encoder whose two random views of a cell shall agree."""

    def __init__(self, encoder: keras.Model) -> None:
        super().__init__()
        self.encoder = encoder
        self.agreement = concerto_tf.NTXent(temperature=0.5)

    def call(self, cells: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        view = self.encoder(cells, training=training)
        if training:  # another call hides other genes
            self.add_loss(self.agreement(view, self.encoder(cells, training=True)))
        return view


def main() -> None:
    params = SplatParams.droplet(
        n_cells=1024, n_genes=300, group_sizes=(1, 1, 1), batch_sizes=(1, 1), seed=0
    )
    records = concerto_tf.convert(
        simulate_cells(params),
        tempfile.mkdtemp(),
        source_key="batch",
        label_keys=["group"],
        drop_empty=True,
    )
    batches = records.dataset(128, shuffle=True, labels=["group"])
    cells = batches.map(lambda b: {key: b[key] for key in ("genes", "values", "source")})
    labels = batches.map(lambda b: b["label/group"])

    encoder = make_encoder(records.n_genes, len(records.sources))
    classifier = keras.Model(encoder.input, keras.layers.Dense(3)(encoder.output))
    classifier.compile(
        keras.optimizers.Adam(1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    labelled = tf.data.Dataset.zip((cells, labels))
    history = classifier.fit(labelled, epochs=5, shuffle=False, verbose=0)
    print("classifier: accuracy", *(f"{x:.2f}" for x in history.history["accuracy"]))

    model = TwoViews(make_encoder(records.n_genes, len(records.sources)))
    model.compile(keras.optimizers.Adam(3e-3))
    history = model.fit(cells, epochs=5, shuffle=False, verbose=0)
    print("two views: loss", *(f"{x:.2f}" for x in history.history["loss"]))
    print("embedding:", model.predict(cells, verbose=0).shape)


if __name__ == "__main__":
    main()
