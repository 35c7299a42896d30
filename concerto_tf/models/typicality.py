"""How typical a cell is of the known types, and what share of known cells is less so."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

#: Principal components in which types are compared, at most.
COMPONENTS = 50
#: Share of the mean spread within types that is added to the spread in every direction.
_RIDGE = 0.1


def type_axes(
    y: np.ndarray, label: np.ndarray, seed: int = 0, components: int = COMPONENTS
) -> np.ndarray:
    """Directions in which every type has about the same spread.

    The principal components of cells, whitened by the covariance that the types share: squared
    distances along them are Mahalanobis distances.

    Args:
        y: Standardised values [n, F] of cells that may be learned from.
        label: Their types [n], 0 or more.
        seed: Seed of the randomised decomposition.
        components: Number of components, at most 50.

    Returns:
        Directions [F, 50], float32, with zeros where there are fewer components.

    Example:

    >>> import numpy as np
    >>> label = np.repeat([0, 1], 100)
    >>> y = np.random.default_rng(0).normal(0, [2.0, 3.0], (200, 2)) + 50 * label[:, None]
    >>> z = y @ type_axes(y, label)
    >>> z[:100].std(0)[:2].round(0).tolist(), z.shape
    ([1.0, 1.0], (200, 50))
    """
    from sklearn.decomposition import PCA

    axes = np.zeros((y.shape[1], COMPONENTS), np.float32)
    k = min(components, len(y) - 1, y.shape[1])
    pca = PCA(k, svd_solver="randomized", random_state=seed).fit(y)
    z = y @ pca.components_.T.astype(y.dtype)
    types, code = np.unique(label, return_inverse=True)
    mean = np.stack([z[code == i].mean(0) for i in range(len(types))])
    rest = (z - mean[code]).astype(np.float64)
    within = rest.T @ rest / max(len(y) - len(types), 1)
    within += max(_RIDGE * np.trace(within) / k, 1e-12) * np.eye(k)
    variance, direction = np.linalg.eigh(within)
    axes[:, :k] = pca.components_.T @ (direction / np.sqrt(variance))
    return axes


def typicality(y: tf.Tensor, axes: tf.Tensor, mean: tf.Tensor) -> tf.Tensor:
    """Minus the squared Mahalanobis distance to the nearest type.

    Args:
        y: Standardised values [B, F].
        axes: From `type_axes` [F, k].
        mean: Mean of each type along them [C, k].

    Returns:
        Scores [B]; higher is more typical.
    """
    z = tf.matmul(y, axes)
    # |z|^2 - 2 z m + |m|^2 would cancel where types lie close.
    return -tf.reduce_min(
        tf.reduce_sum(tf.square(z[:, tf.newaxis] - mean[tf.newaxis]), axis=-1), axis=-1
    )


def confidence_of(score: tf.Tensor, calibration: Sequence[float]) -> tf.Tensor:
    """Share of held-out cells that score no higher, between the steps in proportion.

    Args:
        score: Of cells [B], float32.
        calibration: Scores of the n held-out cells, ascending.

    Returns:
        Within 0 and 1 [B]: at least j / (n + 1) exactly where the score is at least the j-th of
        the held-out ones, and rising with the score everywhere, also beyond all of these.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.models.typicality import confidence_of
    >>> confidence_of(tf.constant([-9.0, 1.0, 1.5, 3.0]), [1.0, 2.0, 3.0]).numpy().tolist()
    [0.0119..., 0.25, 0.375, 0.75]
    """
    held_out = tf.constant(calibration, score.dtype)
    n = len(calibration)
    spread = max(calibration[-1] - calibration[0], 1e-6)
    below = tf.reduce_sum(tf.cast(held_out <= score[:, tf.newaxis], tf.int32), axis=1)
    low = tf.gather(held_out, tf.maximum(below - 1, 0))
    high = tf.gather(held_out, tf.minimum(below, n - 1))
    between = tf.math.divide_no_nan(score - low, high - low)
    # Beyond the held-out cells, ever nearer to 0 or 1.
    between = tf.where(below == 0, 1 / (1 + 4 * (high - score) / spread), between)
    between = tf.where(below == n, 1 - 1 / (1 + 4 * (score - low) / spread), between)
    return (tf.cast(below, score.dtype) + between) / (n + 1)


def steps_below(alpha: float, n: int) -> int:
    """The largest j for which j / (n + 1) is no more than alpha.

    A cell is rejected where it scores below the j-th of n held-out cells; none is where j is 0.

    Example:

    >>> steps_below(0.05, 19), steps_below(0.05, 18)
    (1, 0)
    """
    return math.floor(alpha * (n + 1) + 1e-9)


def rejection_rate(alpha: float, n: int) -> tuple[float, float, float]:
    """Share of known cells that a calibration on n held-out cells rejects, and how sure that is.

    Where a cell is rejected that scores below the j-th of the held-out ones, the share rejected of
    all cells like them follows the distribution Beta(j, n + 1 - j).

    Args:
        alpha: Share of known cells that may be rejected.
        n: Number of held-out cells.

    Returns:
        Its mean, and the limits within which it lies in 95 of 100 calibrations.

    Example:

    >>> [round(rate, 3) for rate in rejection_rate(0.05, 399)]
    [0.05, 0.031, 0.073]
    """
    from scipy.stats import beta

    j = steps_below(alpha, n)
    if not j:
        return 0.0, 0.0, 0.0
    low, high = beta.ppf([0.025, 0.975], j, n + 1 - j)
    return j / (n + 1), float(low), float(high)
