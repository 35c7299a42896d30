"""How far cells lie from the known cell types: Mahalanobis distances in principal components."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from concerto_tf.models.batches import SAMPLE_VALUES

#: Principal components in which cell types are compared, at most.
COMPONENTS = 50
#: Share of the mean variance within cell types that is added to the variance in every direction.
_RIDGE = 0.1


def type_axes(
    y: np.ndarray, label: np.ndarray, seed: int = 0, components: int = COMPONENTS
) -> np.ndarray:
    """Directions in which every cell type has about the same variance.

    The principal components of cells, whitened by the covariance that the cell types share: squared
    distances along them are Mahalanobis distances.

    Args:
        y: Standardized values [n, F] of cells that may be learned from.
        label: Their cell types [n], 0 or more.
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


def type_conformity(y: tf.Tensor, axes: tf.Tensor, mean: tf.Tensor) -> tf.Tensor:
    """Minus the squared Mahalanobis distance to the nearest cell type.

    Args:
        y: Standardized values [B, F].
        axes: From `type_axes` [F, k].
        mean: Mean of each cell type along them [C, k].

    Returns:
        Conformity scores [B]; higher is more like a known cell type.
    """
    z = tf.matmul(y, axes)
    # |z|^2 - 2 z m + |m|^2 would cancel where cell types lie close.
    return -tf.reduce_min(
        tf.reduce_sum(tf.square(z[:, tf.newaxis] - mean[tf.newaxis]), axis=-1), axis=-1
    )
