"""How like the known cell types cells are: Mahalanobis distances in principal components."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from concerto_tf.models.batches import SAMPLE_VALUES

#: Principal components in which cell types are compared, at most.
COMPONENTS = 50
#: Share of the mean variance within cell types that is added to the variance in every direction.
_RIDGE = 0.1
#: Less than any squared distance between cells.
_NO_DISTANCE = 1e-6


def type_axes(
    y: np.ndarray, label: np.ndarray, seed: int = 0, components: int = COMPONENTS
) -> np.ndarray:
    """Directions in which every cell type has about the same variance.

    The principal components of cells, whitened by the covariance that the cell types share: squared
    distances along them are Mahalanobis distances.

    Args:
        y: Standardized values [n, F] of cells that may be learned from.
        label: Their cell types [n], 0 or more.
        seed: Seed of the randomized decomposition.
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


def measured_types(
    cells: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]],
    n_types: int,
    seed: int,
    components: int = COMPONENTS,
) -> tuple[np.ndarray, np.ndarray]:
    """What cell types are compared by, of more cells than fit into memory.

    Args:
        cells: Gives cells in random order each time that it is called, in parts: standardized
            values [n, F] and cell types [n].
        n_types: Number of cell types C.
        seed: As in `type_axes`.
        components: As in `type_axes`.

    Returns:
        Directions [F, 50], of the first cells, and the mean of each cell type along them [C, 50].
    """
    ys, labels = [], []
    for y, label in cells():
        ys.append(y)
        labels.append(label)
        if sum(part.size for part in ys) >= SAMPLE_VALUES:
            break
    axes = type_axes(np.concatenate(ys), np.concatenate(labels), seed, components)
    count, sums = np.zeros(n_types), np.zeros((n_types, COMPONENTS))
    for y, label in cells():
        count += np.bincount(label, minlength=n_types)
        np.add.at(sums, label, y @ axes)
    return axes, (sums / np.maximum(count, 1)[:, None]).astype(np.float32)


def type_conformity(
    y: tf.Tensor, log_p: tf.Tensor, code: tf.Tensor, axes: tf.Tensor, mean: tf.Tensor
) -> tf.Tensor:
    """How near cells lie to the cell type that they are taken for, and how clearly they are told.

    Minus the logarithm of the squared Mahalanobis distance, and the log odds of the type. Both are
    about normally distributed among the cells of one type.

    Args:
        y: Standardized values [B, F].
        log_p: Logits of the cell types [B, C].
        code: Cell type that each cell is taken for [B], int.
        axes: From `type_axes` [F, k].
        mean: Mean of each cell type along them [C, k].

    Returns:
        Conformity scores [B, 2]; higher is more like the cell type.
    """
    distance = tf.reduce_sum(tf.square(tf.matmul(y, axes) - tf.gather(mean, code)), axis=-1)
    own = tf.one_hot(code, log_p.shape[-1], True, False, dtype=tf.bool)
    others = tf.where(own, tf.constant(-np.inf, log_p.dtype), log_p)
    odds = tf.reduce_max(log_p, axis=-1) - tf.reduce_logsumexp(others, axis=-1)
    return tf.stack([-tf.math.log(distance + _NO_DISTANCE), odds], axis=-1)
