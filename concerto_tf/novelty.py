"""Novelty of cells: how unlike known cells they are, as a conformal p-value.

Whatever tells how much a cell is like the known ones is a *conformity score*: higher is more like
them. The novelty p-value of a cell is the share of known cells, itself among them, that conform no
better. Of cells like the known ones a share of about alpha lies below alpha; cells of a new type
lie near 0. `annotate` and `map` differ in their scores, not in what is made of them here.

Cell types differ in how tightly their cells lie, and no single score sees all that is new. So each
score is measured by the cells of its type (`Scale`), and the least of them is what counts.

Cells of a new type come in company. One of them may pass for a known cell, five that lie together
do not (`novelty_together`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

#: The label of a cell that is too novel for any other.
UNKNOWN = "unknown"

_QUANTILES = np.linspace(0, 1, 201)
#: A type of this many known cells has a scale of its own by half; the rest is that of all cells.
_HALF_ITS_OWN = 10
#: Cells that are looked at together, and the most among which these are looked for.
_TOGETHER, _AMONG = 5, 2_000
#: How two p-values of a cell are joined, what company takes of one at most, and what of a query's
#: shift is not counted; measured on types left out of six sets, and between studies (tools/trials).
_TIMES, _MOST_DOUBT, _FORGIVEN, _NOVEL = 1.5, 5.0, 0.5, 0.1
#: Cells by which a type tells how far a query lies off, the least number of such types, and between
#: which limits a query of known cells of another study lies off, in standard deviations. The other
#: half of one study lies up to .38 off, studies of blood by other technologies up to 1.2, cells of
#: other tissues and noise 2.1 and more (tools/trials).
_ENOUGH, _TYPES, _LEAST_OFF, _MOST_OFF = 20, 2, 0.4, 1.5


class Scale(NamedTuple):
    """Where S conformity scores of known cells lie, by cell type, and how widely they vary.

    Attributes:
        mean: Means [C, S].
        width: Standard deviations [C, S].
    """

    mean: np.ndarray
    width: np.ndarray


def scale_by_type(scores: np.ndarray, label: np.ndarray, n_types: int) -> Scale:
    """Measures the scores of known cells by their type.

    Of a rare type mean and variance are drawn to those of all cells: by half where it has 10 cells.

    Args:
        scores: Conformity scores of known cells [n, S], at least one cell.
        label: Type that each cell is taken for [n].
        n_types: Number of types C.

    Returns:
        The scale, float32.
    """
    every = scores.mean(axis=0), scores.var(axis=0)
    mean, variance = (np.tile(moment, (n_types, 1)) for moment in every)
    for code in np.unique(label):
        own = scores[label == code]
        weight = len(own) / (len(own) + _HALF_ITS_OWN)
        mean[code] += weight * (own.mean(axis=0) - mean[code])
        variance[code] += weight * (own.var(axis=0) - variance[code])
    return Scale(mean.astype(np.float32), np.sqrt(variance + 1e-12).astype(np.float32))


def by_type(scores: tf.Tensor, label: tf.Tensor, scale: Scale) -> tf.Tensor:
    """Conformity scores measured by the cells of the type.

    Args:
        scores: Conformity scores of cells [B, S].
        label: Type that each cell is taken for [B], int.
        scale: From `scale_by_type`, arrays or tensors.

    Returns:
        Scores [B, S], in standard deviations from the mean of the type. The least of several is a
        conformity score itself.

    Example:

    >>> import numpy as np, tensorflow as tf
    >>> from concerto_tf.novelty import Scale, by_type
    >>> scale = Scale(np.float32([[0, 5]]), np.float32([[1, 2]]))
    >>> by_type(tf.constant([[1.0, 1.0], [-3.0, 9.0]]), tf.constant([0, 0]), scale).numpy()
    array([[ 1., -2.],
           [-3.,  2.]], dtype=float32)
    """
    mean, width = (tf.gather(tf.convert_to_tensor(part), label) for part in scale)
    return (scores - mean) / width


class Calibration(NamedTuple):
    """Conformity scores of known cells, with which those of other cells are compared.

    Attributes:
        scores: Ascending [Q]: those of all n cells, or quantiles of them.
        n_cells: Number n of cells.
    """

    scores: np.ndarray
    n_cells: np.ndarray | int


def calibrate(scores: np.ndarray) -> Calibration:
    """Keeps 201 quantiles of the scores of known cells.

    Args:
        scores: Conformity scores of known cells [n]; of none nothing is novel.

    Returns:
        The calibration.
    """
    if not len(scores):
        return Calibration(np.zeros(1, np.float32), 0)
    return Calibration(np.quantile(scores, _QUANTILES).astype(np.float32), len(scores))


def calibrated_on_all(scores: Sequence[float] | np.ndarray) -> Calibration:
    """A calibration that holds the scores of all known cells, given in any order."""
    return Calibration(np.sort(np.asarray(scores, np.float32)), len(scores))


def novelty(
    score: tf.Tensor,
    known: Calibration,
    interpolate: bool = False,
) -> tf.Tensor:
    """The novelty p-value of cells: the share of known cells that conform no better.

    Args:
        score: Conformity scores of cells [B], float32.
        known: From `calibrate`, or the scores of all known cells.
        interpolate: Whether the cell itself, which counts as one of the known cells, counts only in
            proportion to where its score lies between theirs. The value then rises with the score
            everywhere, also beyond all known cells. Takes the scores of all known cells.

    Returns:
        Values within 0 and 1 [B], float32: with j of n known cells that conform no better,
        (j + 1) / (n + 1), or between j / (n + 1) and that where interpolated.

    Example:

    >>> import numpy as np, tensorflow as tf
    >>> from concerto_tf.novelty import Calibration, novelty
    >>> known = Calibration(np.float32([1, 2, 3]), 3)
    >>> score = tf.constant([-9.0, 1.0, 1.5, 3.0])
    >>> novelty(score, known).numpy().tolist()
    [0.25, 0.5, 0.5, 1.0]
    >>> novelty(score, known, interpolate=True).numpy().tolist()
    [0.0119..., 0.25, 0.375, 0.75]

    Reference:
        Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", Springer (2005).
    """
    scores, count = (tf.constant(part, tf.float32) for part in known)
    below = tf.cast(tf.searchsorted(scores, score, side="right"), tf.float32)
    below = tf.where(tf.math.is_nan(score), 0.0, below)
    itself = _between(score, scores, tf.cast(below, tf.int32)) if interpolate else 1.0
    return (below * (count / scores.shape[-1]) + itself) / (1.0 + count)


def mean_together(p_value: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The mean logarithm of the p-values of each cell and the four that lie nearest to it.

    Of many cells the nearest are looked for among 2,000 drawn at random, so that they lie about as
    near in any number of cells.

    Args:
        p_value: Novelty p-values [n], each of a cell by itself.
        z: Embeddings [n, d].

    Returns:
        Conformity scores [n]; nothing [0] of fewer than five cells.
    """
    from sklearn.neighbors import NearestNeighbors

    n = len(z)
    if n < _TOGETHER:
        return np.empty(0, np.float32)
    log_p = np.log(np.maximum(p_value, 1e-12))
    mean = np.empty(n, np.float32)
    for rows in np.array_split(np.random.default_rng(0).permutation(n), -(-n // _AMONG)):
        near = NearestNeighbors(n_neighbors=_TOGETHER).fit(z[rows]).kneighbors(z[rows])[1]
        mean[rows] = log_p[rows][near].mean(axis=1)
    return mean


def novelty_together(p_value: np.ndarray, z: np.ndarray, known: Calibration) -> np.ndarray:
    """The novelty p-value of cells by themselves and by those that lie nearest to them.

    It is 1.5 times the lesser of the two p-values, which depend on each other. In trials a share of
    about alpha of known cells then lies below alpha.

    A mean of five cells shows a little shift of a whole query five times as clearly as one cell
    does. So half of how far the query's median lies below that of known cells is not counted,
    unless most of the query is novel cell by cell. And company takes a p-value to a fifth at most:
    a known cell may be the only one of its type among cells of a new one.

    Args:
        p_value: Novelty p-values of the cells of one query [n], each of a cell by itself.
        z: Embeddings [n, d].
        known: `calibrate` of `mean_together` of known cells.

    Returns:
        Values within 0 and 1 [n], float32; as given where there are fewer than five cells.
    """
    score = mean_together(p_value, z)
    if not len(score) or not known.n_cells:
        return p_value
    if np.median(p_value) >= _NOVEL:
        score -= _FORGIVEN * min(0.0, float(np.median(score) - np.median(known.scores)))
    together = np.maximum(novelty(score, known).numpy(), p_value / _MOST_DOUBT)
    return np.minimum(1.0, _TIMES * np.minimum(p_value, together))


def lying_off(
    scores: np.ndarray, label: np.ndarray, known: Sequence[Sequence[float]]
) -> np.ndarray:
    """How far the scores of a query lie below those of known cells as a whole.

    Cells of another study conform a little less to each type. It is told by type, and the middle
    one of the types counts: cells of a new type are taken for one or two of the known, and do not
    move it.

    Args:
        scores: Conformity scores of the cells of one query, measured by type [n, S].
        label: Type that each cell is taken for [n].
        known: The S scores of known cells, each in any order.

    Returns:
        Differences [S], 0 or less; 0 for less than .4 standard deviations, which is no other
        study and would hide new types. All are 0 where fewer than two types have 20 cells, and
        where one is more than 1.5 standard deviations: so far lie cells of other tissues and
        noise.

    Example:

    >>> import numpy as np
    >>> scores, label = np.repeat([-1.0, -0.5, -9.0], 20)[:, None], np.repeat([0, 1, 2], 20)
    >>> lying_off(scores, label, [[-0.1, 0.0, 0.1]]).tolist()
    [-1.0]
    """
    usual = [np.median(of) for of in known]
    types, count = np.unique(label, return_counts=True)
    of_types = [np.median(scores[label == one], axis=0) - usual for one in types[count >= _ENOUGH]]
    if len(of_types) < _TYPES:
        return np.zeros(scores.shape[1])
    # Of an even number the lesser of both in the middle: one of two types may be new.
    middle = -np.quantile(-np.array(of_types), 0.5, axis=0, method="lower")
    return np.where(middle < -_LEAST_OFF, middle, 0.0) * bool((middle >= -_MOST_OFF).all())


def _between(score: tf.Tensor, known: tf.Tensor, below: tf.Tensor) -> tf.Tensor:
    """How far each score [B] lies from the known one before it to the next, within 0 and 1."""
    n = known.shape[0]
    width = tf.maximum(known[-1] - known[0], 1e-6)
    low = tf.gather(known, tf.maximum(below - 1, 0))
    high = tf.gather(known, tf.minimum(below, n - 1))
    between = tf.math.divide_no_nan(score - low, high - low)
    # Beyond the known cells, ever nearer to 0 or 1.
    between = tf.where(below == 0, 1 / (1 + 4 * (high - score) / width), between)
    return tf.where(below == n, 1 - 1 / (1 + 4 * (score - low) / width), between)


def steps_below(alpha: float, n: int) -> int:
    """The largest j for which j / (n + 1) is no more than alpha.

    A cell is rejected where it conforms less than the j-th of n known cells; none is where j is 0.

    Example:

    >>> steps_below(0.05, 19), steps_below(0.05, 18)
    (1, 0)
    """
    return math.floor(alpha * (n + 1) + 1e-9)


def is_novel(p_value: Any, alpha: float, n: int) -> Any:
    """Which cells are unknown, by p-values that rest on n known cells.

    Args:
        p_value: Novelty p-values [B], array or tensor.
        alpha: Share of known cells that may be rejected.
        n: Number of known cells that the p-values rest on; too few reject none.

    Returns:
        bool [B].
    """
    return p_value < (alpha if steps_below(alpha, n) else 0.0)


def rejection_rate(share: float, n: int) -> tuple[float, float, float]:
    """Share of known cells that a calibration on n held-out cells rejects, and how sure that is.

    Where a cell is rejected that conforms less than the j-th of the held-out ones, the share
    rejected of all cells like them follows the distribution Beta(j, n + 1 - j).

    Args:
        share: Share of the held-out cells that are rejected.
        n: Number of held-out cells.

    Returns:
        Its mean, and the limits within which it lies in about 95 of 100 calibrations.

    Example:

    >>> [round(rate, 3) for rate in rejection_rate(0.05, 399)]
    [0.05, 0.031, 0.073]
    """
    from scipy.stats import beta

    j = steps_below(share, n)
    if not j:
        return 0.0, 0.0, 0.0
    low, high = beta.ppf([0.025, 0.975], j, n + 1 - j)
    return j / (n + 1), float(low), float(high)
