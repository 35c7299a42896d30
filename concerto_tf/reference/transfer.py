"""Transfer of labels from reference cells, with a probability and a novelty p-value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from concerto_tf.reference.cells import Reference
from concerto_tf.reference.conformity import NEAR_CELLS, calibrated, nearness, novelty_of_labels
from concerto_tf.reference.index import BATCH_CELLS, nearest
from concerto_tf.reference.voices import VOTERS, together
from concerto_tf.reference.votes import vote


def transfer(
    reference: Reference, z: np.ndarray, key: str, k: int, heard: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Labels of cells by their neighbours and by voices, and how novel the cells are.

    Args:
        reference: The reference; every cell must have a label (see `Reference.labelled`).
        z: Embeddings [n, d].
        key: Key of the labels.
        k: Number of neighbours that vote.
        heard: What is said of the labels beside that [n, L], `Voices.heard`; None to let the
            neighbours alone tell them.

    Returns:
        ``code`` int32 [n] of the label (-1 where nobody votes), ``probability`` float32 [n]
        (by the vote alone equation 16), ``novelty`` float32 [n], the p-value, and ``shares``
        float32 [n, L], the probabilities of all labels; by votes alone those of the nearest 15.

    Raises:
        InputError: There are no such labels, or not of all cells; or k exceeds the cells.

    Reference:
        Concerto, "NN-voting classifier", equations 14 to 16.
    """
    if heard is None:
        reference = reference.by_neighbours()
    judge = _judge(reference, key, k)
    index, cosine = reference.neighbours(z, _width(reference, k))
    seen = tf.constant(reference.embedded.seen)
    parts = []
    for start in range(0, len(z), BATCH_CELLS):
        rows = slice(start, start + BATCH_CELLS)
        compared = reference.embedded.compared(z[rows])
        said = None if heard is None else heard[rows]
        found = judge(compared, index[rows], cosine[rows], seen, said)
        parts.append({name: x.numpy() for name, x in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def heard_of(
    reference: Reference,
    z: np.ndarray,
    key: str,
    by_genes: np.ndarray | None,
    rows: np.ndarray | slice = slice(None),
) -> np.ndarray | None:
    """What is said of cells beside the vote [n, L]; None where the reference has no voices.

    Args:
        reference: The reference.
        z: Embeddings of the cells [n, d].
        key: Key of the labels.
        by_genes: What genes say of the cells among others; None where they say nothing.
        rows: Which of the others these are.
    """
    voices = reference.voices.get(key)
    if voices is None:
        return None
    embedded = reference.embedded
    said = np.zeros(1, np.float32) if by_genes is None else by_genes[rows]
    return voices.heard(embedded.compared(z) - embedded.middle, said)


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
        self._judge, self._middle = _judge(reference, key, k), reference.embedded.middle
        voices = reference.voices.get(key)
        self.listens = voices is not None
        if voices is not None:
            parts = (voices.units, voices.genes, voices.bias)
            self._linear = [tf.Variable(part, trainable=False) for part in parts]
        self._blocks = tf.Variable(reference.index.blocks, trainable=False)
        self._seen = tf.Variable(reference.embedded.seen, trainable=False)

    def __call__(self, z: tf.Tensor, y: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """What `transfer` says of embeddings [B, d] and, where it `listens`, values [B, F]."""
        z, heard = tf.cast(z, tf.float32) - self._shift, None
        index, cosine = nearest(z, self._blocks, self._n_cells, self._width)
        if self.listens:
            units, genes, bias = self._linear
            heard = tf.linalg.matmul(z - self._middle, units) + bias
            if y is not None and genes.shape[0]:
                heard += tf.linalg.matmul(tf.cast(y, tf.float32), genes)
        return self._judge(z, index, cosine, self._seen, heard)


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
    voices, there = reference.voices.get(key), np.isin(np.arange(len(held.names)), held.codes)

    def judge(
        z: tf.Tensor,
        index: tf.Tensor,
        cosine: tf.Tensor,
        seen: tf.Tensor,
        heard: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        code_of = tf.constant(held.codes)  # of the graph where this is exported
        codes = tf.gather(code_of, index)

        def voted(n: int) -> tf.Tensor:
            return vote(codes[:, :n], cosine[:, :n], len(held.names))

        if voices is None or heard is None:
            p, shares = voted(k), voted(n_near)
        else:
            p, shares = (
                together(voted(n), n, heard, voices.neighbours, there)
                for n in (k, min(VOTERS, index.shape[1]))  # sets know of no k
            )
        probability = tf.reduce_max(p, axis=1)
        code = tf.where(probability > 0, tf.argmax(p, axis=1, output_type=tf.int32), -1)
        near = nearness(z, index[:, :n_near], cosine[:, :n_near], seen, middle)
        return {
            "code": code,
            "probability": probability,
            "novelty": novelty_of_labels(z - middle, near, code, conformity),
            "shares": shares,
        }

    return judge
