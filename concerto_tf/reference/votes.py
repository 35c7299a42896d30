"""What the nearest reference cells vote for, and how far that is from the true labels."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from concerto_tf.novelty import Calibration
from concerto_tf.numerics.prediction_sets import kept_scores, of_truth
from concerto_tf.reference.cells import Labels


def vote(codes: tf.Tensor, cosine: tf.Tensor, n_labels: int) -> tf.Tensor:
    """Probability of each label from the labels of the nearest reference cells.

    A neighbour weighs as much as its cosine; one that points away (a negative cosine), and one
    without a label, does not vote. Where nobody votes, all probabilities are 0.

    Args:
        codes: Labels of the neighbours [B, k], int; -1 where missing.
        cosine: Their cosine similarities [B, k].
        n_labels: Number of labels L.

    Returns:
        Probabilities [B, L], float32.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.reference.votes import vote
    >>> vote(tf.constant([[0, 1, 0]]), tf.constant([[0.6, 0.3, 0.3]]), 2).numpy().tolist()
    [[0.75, 0.25]]

    Reference:
        Concerto, equations 15 and 16.
    """
    weight = tf.where(codes >= 0, tf.maximum(tf.cast(cosine, tf.float32), 0.0), 0.0)
    member = tf.one_hot(codes, n_labels, dtype=tf.float32)
    return tf.math.divide_no_nan(
        tf.einsum("bk,bkl->bl", weight, member), tf.reduce_sum(weight, axis=1, keepdims=True)
    )


def votes_for(held: Labels, index: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """What the neighbours of cells vote for: shares of all labels [n, L].

    Args:
        held: Labels of all reference cells.
        index: Neighbours [n, k].
        cosine: Their cosines [n, k].
    """
    shares = vote(tf.constant(held.codes[index]), tf.constant(cosine), len(held.names))
    return np.asarray(shares)


def calibrate_shares(held: Labels, rows: np.ndarray, shares: np.ndarray) -> Calibration:
    """How unlikely the true labels of reference cells are told, for sets of labels.

    Args:
        held: Labels of all reference cells.
        rows: Cells to calibrate on [n], some of each label.
        shares: Probabilities of all labels that others tell of these [n, L].

    Returns:
        Nonconformity of the true labels (`of_truth`). Each of ``rows`` stands for its share of all
        cells of its label.
    """
    codes = held.codes[rows]
    of_all, chosen = (np.bincount(of, minlength=len(held.names)) for of in (held.codes, codes))
    weight = (of_all / np.maximum(chosen, 1))[codes]
    kept = kept_scores(of_truth(shares, codes), weight)
    return Calibration(kept.astype(np.float32), len(rows))
