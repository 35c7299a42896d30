"""How much a cell is like the reference cells of its label, and how novel it is therefore."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from concerto_tf.errors import InputError
from concerto_tf.novelty import (
    by_type,
    calibrate,
    mean_together,
    novelty,
    scale_by_type,
)
from concerto_tf.numerics.unit_rows import unit_rows
from concerto_tf.reference.cells import Conformity, Embedded, Reference
from concerto_tf.reference.voices import VOTERS, together
from concerto_tf.reference.votes import calibrate_shares, votes_for

#: Neighbours whose mean cosine tells how near a cell lies to the reference.
NEAR_CELLS = 15

#: How far a calibration takes cells from as a model knows those it was trained on (0) to as it
#: knows others (1). With this a share of about alpha of other cells of the same kind is rejected.
_QUERY_LIKE = 0.75
#: Cells of each label at most that a calibration rests on.
_CALIBRATION_CELLS = 500
#: Cells that are looked at together: there may be millions.
_AT_ONCE = 100_000
#: Scores closer than this are the same.
_SAME = 1e-6
#: Less than one minus any cosine of cells that differ.
_NO_ANGLE = 1e-6


def novelty_of_labels(
    z: tf.Tensor, near: tf.Tensor, codes: tf.Tensor, conformity: Conformity
) -> tf.Tensor:
    """The novelty p-value of cells that were given labels.

    Three things are looked at, each measured by the reference cells of the label: the mean cosine
    to the nearest reference cells, the cosine to the label's centroid, and how far the cell lies
    from the middle beside it. Whatever is least like the reference counts.

    Args:
        z: Embeddings [B, d], seen from the middle of all cells, as are all cosines here.
        near: Mean cosine to the nearest `NEAR_CELLS` reference cells [B].
        codes: Label that each cell is given [B], int; -1 gives 0.
        conformity: From `calibrated`.

    Returns:
        Values within 0 and 1 [B], float32; see `novelty`.
    """
    z, label = tf.cast(z, tf.float32), tf.maximum(codes, 0)
    direction = tf.gather(tf.constant(conformity.directions), label)
    centre = tf.reduce_sum(tf.math.l2_normalize(z, axis=-1) * direction, axis=-1)
    length = tf.norm(z, axis=-1) / tf.gather(tf.constant(conformity.lengths), label)
    scores = by_type(_scores(near, centre, length), label, conformity.scale)
    score = tf.reduce_min(scores, axis=-1)
    return tf.where(codes >= 0, novelty(score + _SAME, conformity.least), 0.0)


def _scores(near: tf.Tensor, centre: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Conformity scores [B, 3], each about normally distributed among the cells of one label."""
    # Rounding takes cosines beyond 1, by more where matrices are multiplied in half precision.
    apart = [-tf.math.log(tf.maximum(1 - cosine, _NO_ANGLE)) for cosine in (near, centre)]
    return tf.stack([*apart, -tf.abs(tf.math.log(length + _NO_ANGLE))], axis=-1)


def nearness(
    z: tf.Tensor, index: tf.Tensor, cosine: tf.Tensor, seen: tf.Tensor, middle: np.ndarray
) -> tf.Tensor:
    """Mean cosine of cells to their nearest reference cells, seen from the middle.

    Args:
        z: Embeddings as they are compared [B, d].
        index: Nearest reference cells [B, k].
        cosine: Cosines with these as they are compared [B, k].
        seen: `Embedded.seen` [N, 3].
        middle: `Embedded.middle` [d].

    Returns:
        Means [B].
    """
    if not middle.any():
        return tf.reduce_mean(cosine, axis=1)
    length, along, distance = tf.unstack(tf.gather(seen, index), axis=-1)
    own = z - middle
    own_distance = tf.norm(own, axis=1, keepdims=True)
    product = length * (cosine * tf.norm(z, axis=1, keepdims=True) - along)
    product -= tf.reduce_sum(own * middle, axis=1, keepdims=True)
    between = tf.clip_by_value(tf.math.divide_no_nan(product, distance * own_distance), -1.0, 1.0)
    # Rounding is all that is left of the direction of a cell in the middle itself.
    least = 1e-4 * np.linalg.norm(middle)
    between = tf.where((distance > least) & (own_distance > least), between, 0.0)
    return tf.reduce_mean(between, axis=1)


def query_like(embedded: Embedded, own: np.ndarray) -> np.ndarray:
    """Reference cells as they would lie, were they of a query: seen from the middle [n, d]."""
    return own * embedded.factor ** (_QUERY_LIKE - 1)


def calibrated(reference: Reference, key: str) -> Conformity:
    """How much the reference's own cells conform to their labels, each against all the others.

    Args:
        reference: The reference, which keeps the answer.
        key: Key of the labels; every cell must have one (see `Reference.labelled`).

    Returns:
        The calibration, on 500 cells of each label at most.
    """
    if key not in reference.calibrations:
        reference.calibrations[key] = _calibrate(reference, key)
    return reference.calibrations[key]


def _calibrate(reference: Reference, key: str) -> Conformity:
    held, embedded = reference.labels_of(key), reference.embedded
    if (held.codes < 0).any():
        raise InputError(f"reference cells without {key!r}; leave them out with `labelled`")
    n_labels, voices = len(held.names), reference.voices.get(key)
    # The same cells every time; which ones hardly matters. What voices say of cells that they have
    # not learned from is known of some.
    order = np.random.default_rng(0).permutation(reference.n_cells)
    if voices is not None and not len(voices.rows):
        voices = None
    if voices is not None:
        order = order[np.isin(order, voices.rows)]
    chosen = [order[held.codes[order] == code][:_CALIBRATION_CELLS] for code in range(n_labels)]
    rows = np.sort(np.concatenate(chosen))
    own, true = embedded.from_middle(rows), held.codes[rows]
    as_query = query_like(embedded, own)
    query = as_query + embedded.middle
    index, cosine = _nearest_others(reference, rows, query)
    near = np.ones(1, np.float32)  # of a single cell, which has no other
    if len(cosine.T):
        near = nearness(tf.constant(query), index, cosine, embedded.seen, embedded.middle).numpy()
    shares = votes_for(held, index, cosine)
    p = votes_for(held, index[:, :VOTERS], cosine[:, :VOTERS])
    if voices is not None:
        there, k = np.isin(np.arange(n_labels), held.codes), min(VOTERS, cosine.shape[1])
        p = together(tf.constant(p), k, voices.of_cells(rows), voices.neighbours, there)
        p = shares = np.asarray(p)
    label = np.where(p.any(axis=1), p.argmax(axis=1), true)

    count = np.bincount(held.codes, minlength=n_labels)
    sums = np.zeros((2, n_labels, own.shape[1]), np.float64)
    for start in range(0, reference.n_cells, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        cells = embedded.from_middle(part)
        member = np.eye(n_labels, dtype=np.float32)[held.codes[part]].T
        sums += np.stack([member @ unit_rows(cells), member @ cells])
    lengths = np.linalg.norm(sums[1], axis=1) / np.maximum(count, 1)
    lengths = np.where(lengths > 0, lengths, 1.0)
    # Without the cell itself, which would draw the centroid of a rare label to it.
    others = unit_rows(sums[0][label] - np.where((label == true)[:, np.newaxis], unit_rows(own), 0))
    centre = np.einsum("nd,nd->n", others, unit_rows(as_query))
    alone = count[label] - (label == true) < 1
    if alone.any():
        centre[alone] = np.median(centre[~alone]) if not alone.all() else 1.0

    length = np.linalg.norm(as_query, axis=1) / lengths[label]
    near, centre, length = (tf.constant(part, tf.float32) for part in (near, centre, length))
    scores = _scores(near, centre, length)
    scale = scale_by_type(scores.numpy(), label, n_labels)
    scale.width[count < 2] = np.inf  # of a single cell nobody knows how its like vary
    least = tf.reduce_min(by_type(scores, tf.constant(label), scale), axis=-1)
    known = calibrate(least.numpy())
    p_value = novelty(least + _SAME, known).numpy()
    return Conformity(
        unit_rows(sums[0]).astype(np.float32),
        lengths.astype(np.float32),
        scale,
        known,
        calibrate(mean_together(p_value, query)),
        calibrate_shares(held, rows, shares),
    )


def _nearest_others(
    reference: Reference, rows: np.ndarray, query: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of all other cells of reference cells, as they would be in a query [n, d]."""
    wide = min(NEAR_CELLS + 1, reference.n_cells)
    index, cosine = reference.index.search(query, wide)
    # A cell is its own nearest, unless another is just like it.
    itself = index == rows[:, np.newaxis]
    itself[~itself.any(axis=1), -1] = True
    index, cosine = (x[~itself].reshape(len(rows), wide - 1) for x in (index, cosine))
    return index, cosine
