"""How typical a cell is of the label it is given, measured on the reference cells themselves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

#: Neighbours whose mean cosine tells how near a cell lies to the reference.
NEAR_CELLS = 15

_QUANTILES = np.linspace(0, 1, 201)


class Calibration(NamedTuple):
    """What `familiarity` compares with; arrays of a few hundred numbers per label.

    Attributes:
        centroids: Mean direction of the cells of each label [L, d].
        counts: Number of cells of each label that the quantiles rest on [L].
        near: Quantiles of the mean cosine to the nearest reference cells, by label [L, Q].
        centre: Quantiles of the cosine to the label's centroid, by label [L, Q].
        joint: Quantiles of the sum of the two logarithms over all these cells [Q].
    """

    centroids: np.ndarray
    counts: np.ndarray
    near: np.ndarray
    centre: np.ndarray
    joint: np.ndarray

    @property
    def n_cells(self) -> float:
        """Number of reference cells that the quantiles in ``joint`` rest on."""
        return float(self.counts.sum())


def calibrate(
    sums: np.ndarray,
    sizes: np.ndarray,
    unit: np.ndarray,
    query: np.ndarray,
    own: np.ndarray,
    near: np.ndarray,
) -> Calibration:
    """Takes the measure of the reference's own cells, each against the others.

    Args:
        sums: Sum of the unit embeddings of all cells of each label [L, d].
        sizes: Their numbers [L].
        unit: Unit embeddings of the cells that quantiles are taken from [n, d].
        query: The same as they would be in a query [n, d].
        own: Labels of these [n].
        near: Mean cosine of each of these to its nearest other reference cells [n].

    Returns:
        The calibration.
    """
    # Without the cell itself, which would draw the centroid of a rare label to it.
    rest = sums[own] - unit
    rest /= np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-12)
    centre = np.einsum("nd,nd->n", rest, query)
    centre[sizes[own] < 2] = 1.0
    centroids = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    made = Calibration(
        centroids.astype(np.float32),
        np.bincount(own, minlength=len(sums)).astype(np.float32),
        _quantiles(near, own, len(sums)),
        _quantiles(centre, own, len(sums)),
        np.zeros(len(_QUANTILES), np.float32),
    )
    joint = _joint(*(tf.constant(x, tf.float32) for x in (near, centre)), tf.constant(own), made)
    return made._replace(joint=np.quantile(joint.numpy(), _QUANTILES).astype(np.float32))


def familiarity(
    z: tf.Tensor, near: tf.Tensor, codes: tf.Tensor, calibration: Calibration
) -> tf.Tensor:
    """Share of cells, itself and those of the reference, no more typical of their label than each.

    Two things are looked at, each against the reference cells of the label: the mean cosine to
    the nearest reference cells, and the cosine to the label's centroid. Of cells like those that
    the calibration rests on, a share of about alpha lies below alpha; those of a type that the
    reference lacks lie near 1 / (1 + n), where n reference cells were looked at.

    Args:
        z: Embeddings [B, d], seen from the middle of all cells, as are all cosines here.
        near: Mean cosine to the nearest `NEAR_CELLS` reference cells [B].
        codes: Label that each cell is given [B], int; -1 gives 0.
        calibration: From `calibrate`.

    Returns:
        Shares within 0 and 1 [B], float32.
    """
    z = tf.math.l2_normalize(tf.cast(z, tf.float32), axis=-1)
    label = tf.maximum(codes, 0)
    centre = tf.reduce_sum(z * tf.gather(tf.constant(calibration.centroids), label), axis=-1)
    joint = _joint(near, centre, label, calibration)
    share = _share_below(tf.constant(calibration.joint)[tf.newaxis], joint)
    # The cell itself counts: one among a few cannot be told to be strange.
    n = calibration.n_cells
    share = (1.0 + n * share) / (1.0 + n)
    return tf.where(codes >= 0, share, 0.0)


def _joint(near: tf.Tensor, centre: tf.Tensor, label: tf.Tensor, of: Calibration) -> tf.Tensor:
    """Sum of the logarithms of the two conformal p-values (Fisher's way) [B]."""
    n = tf.gather(tf.constant(of.counts), label)

    def log_p(grid: np.ndarray, value: tf.Tensor) -> tf.Tensor:
        below = _share_below(tf.gather(tf.constant(grid), label), value)
        # The cell itself counts, so that a label of few cells never says 0.
        return tf.math.log((1.0 + n * below) / (1.0 + n))

    return log_p(of.near, near) + log_p(of.centre, centre)


def _share_below(grid: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """Share of quantiles [B or 1, Q] that do not exceed a value [B]."""
    return tf.reduce_mean(tf.cast(grid <= value[:, tf.newaxis] + 1e-6, tf.float32), axis=1)


def _quantiles(values: np.ndarray, codes: np.ndarray, n_labels: int) -> np.ndarray:
    """Quantiles of the values of each label [L, Q]; of a label without cells, -1 throughout."""
    grid = np.full((n_labels, len(_QUANTILES)), -1.0, np.float32)
    for code in np.unique(codes):
        grid[code] = np.quantile(values[codes == code], _QUANTILES)
    return grid
