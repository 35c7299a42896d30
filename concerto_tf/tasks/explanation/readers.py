"""What embeddings are computed from, gene by gene: of any encoder, and of a linear one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tensorflow as tf

from concerto_tf.layers import scatter_to_dense
from concerto_tf.models.encoder import Encoder, Readable
from concerto_tf.models.modality import ModalityInput
from concerto_tf.records.batch import Batch, Minibatch, ModalityBatch


class Reader:
    """Reads the embeddings of an encoder from one number for each of its input genes.

    Those are what a linear encoder is linear in, and of any other the normalized values.

    Args:
        encoder: Any.

    Attributes:
        linear: Whether embeddings are a linear function of the numbers, up to a constant.
        width: How many numbers there are: the input genes of all modalities.
        dim: Width of the embeddings.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._widths = [one.n_inputs for one in encoder.modality_inputs]
        self._readable: Readable | None = None
        if isinstance(encoder, Readable) and encoder.linear:
            self._readable = encoder
        self.linear = self._readable is not None
        self.width, self.dim = sum(self._widths), encoder.embedding_dim

    def inputs(self, batch: Batch) -> tf.Tensor:
        """The numbers of the cells of a minibatch [B, width], float32, modalities side by side."""
        if self._readable is not None:
            return tf.cast(self._readable.standardized(batch), tf.float32)
        view = Minibatch(batch)
        n_cells, parts = tf.shape(view.source)[0], []
        for one in self._encoder.modality_inputs:
            cells = one.cells(view)
            if cells is None:
                parts.append(tf.zeros([n_cells, one.n_inputs]))
            else:
                dense = scatter_to_dense(cells.genes, cells.values, one.n_inputs, cells.rows)
                parts.append(tf.cast(dense, tf.float32))
        return tf.concat(parts, axis=1)

    def read(self, inputs: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Embeddings [B, dim], float32, of such numbers for the cells of a minibatch."""
        if self._readable is not None:
            return tf.cast(self._readable.read(inputs, batch), tf.float32)
        entries: dict[str, Any] = dict(batch)
        parts = tf.split(inputs, self._widths, axis=1)
        for one, values in zip(self._encoder.modality_inputs, parts, strict=True):
            held = Minibatch(batch).modality(one.name)
            if held is not None:
                entries.update(_with_values(one, held, values).entries(one.name))
        return tf.cast(self._encoder(entries, training=False), tf.float32)


def _with_values(one: ModalityInput, held: ModalityBatch, values: tf.Tensor) -> ModalityBatch:
    """What a minibatch would hold of a modality for the input genes to have normalized values."""
    genes = tf.range(len(one.vocabulary)) if one.genes is None else tf.constant(one.genes)
    total = held.totals
    if one.target_sum is not None:
        whole = total if held.measured is None else total / (1 - one.missing(held.measured))
        values = tf.math.expm1(values) * (whole / one.target_sum)[:, tf.newaxis]
    genes = tf.tile(tf.cast(genes, tf.int32)[tf.newaxis], [tf.shape(values)[0], 1])
    return replace(held, genes=genes, values=values, total=total, offset=None)
