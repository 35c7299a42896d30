"""Transfer of labels from the nearest reference cells, with a probability and a novelty p-value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from concerto_tf.reference.cells import Reference
from concerto_tf.reference.conformity import NEAR_CELLS, calibrated, nearness, novelty_of_labels
from concerto_tf.reference.index import BATCH_CELLS, nearest
from concerto_tf.reference.votes import vote


def transfer(reference: Reference, z: np.ndarray, key: str, k: int) -> dict[str, np.ndarray]:
    """Labels of cells by the vote of their neighbours, and how novel the cells are.

    Args:
        reference: The reference; every cell must have a label (see `Reference.labelled`).
        z: Embeddings [n, d].
        key: Key of the labels.
        k: Number of neighbours that vote.

    Returns:
        ``code`` int32 [n] of the label (-1 where nobody votes), ``probability`` float32 [n]
        (equation 16), ``novelty`` float32 [n], the p-value, and ``shares`` float32 [n, L], the
        probabilities of all labels by the nearest 15 cells.

    Raises:
        InputError: There are no such labels, or not of all cells; or k exceeds the cells.

    Reference:
        Concerto, "NN-voting classifier", equations 14 to 16.
    """
    judge = _judge(reference, key, k)
    index, cosine = reference.neighbours(z, _width(reference, k))
    seen = tf.constant(reference.embedded.seen)
    parts = []
    for start in range(0, len(z), BATCH_CELLS):
        rows = slice(start, start + BATCH_CELLS)
        found = judge(reference.embedded.compared(z[rows]), index[rows], cosine[rows], seen)
        parts.append({name: x.numpy() for name, x in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class LabelTransfer(tf.Module):
    """Transfer of labels as a function of tensors alone, to be put into a SavedModel.

    The reference's cells are held in variables: constants of a graph have to fit into one message.
    Only the codes of their labels stay constants.

    Args:
        reference: The reference; every cell must have a label (see `Reference.labelled`).
        key: Key of the labels.
        k: Number of neighbours that vote.
    """

    def __init__(self, reference: Reference, key: str, k: int) -> None:
        super().__init__()
        self._n_cells, self._width = reference.n_cells, _width(reference, k)
        self._shift = reference.embedded.origin - reference.embedded.middle
        self._judge = _judge(reference, key, k)
        self._blocks = tf.Variable(reference.index.blocks, trainable=False)
        self._seen = tf.Variable(reference.embedded.seen, trainable=False)

    def __call__(self, z: tf.Tensor) -> dict[str, tf.Tensor]:
        """What `transfer` says of embeddings [B, d]."""
        z = tf.cast(z, tf.float32) - self._shift
        index, cosine = nearest(z, self._blocks, self._n_cells, self._width)
        return self._judge(z, index, cosine, self._seen)


def _width(reference: Reference, k: int) -> int:
    """Number of neighbours that the vote and the novelty p-value need together."""
    return max(k, min(NEAR_CELLS, reference.n_cells))


def _judge(reference: Reference, key: str, k: int) -> Callable[..., dict[str, tf.Tensor]]:
    """Vote and novelty, once the neighbours are found.

    Returns:
        A function of embeddings as they are compared [B, d], indices and cosines of their
        neighbours, and `Embedded.seen`.
    """
    held, conformity = reference.labels_of(key), calibrated(reference, key)
    n_near, middle = min(NEAR_CELLS, reference.n_cells), reference.embedded.middle

    def judge(
        z: tf.Tensor, index: tf.Tensor, cosine: tf.Tensor, seen: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        code_of = tf.constant(held.codes)  # of the graph where this is exported
        codes = tf.gather(code_of, index[:, :k])
        p = vote(codes, cosine[:, :k], len(held.names))
        probability = tf.reduce_max(p, axis=1)
        code = tf.where(probability > 0, tf.argmax(p, axis=1, output_type=tf.int32), -1)
        near = nearness(z, index[:, :n_near], cosine[:, :n_near], seen, middle)
        return {
            "code": code,
            "probability": probability,
            "novelty": novelty_of_labels(z - middle, near, code, conformity),
            "shares": vote(
                tf.gather(code_of, index[:, :n_near]), cosine[:, :n_near], len(held.names)
            ),
        }

    return judge
