"""How like the known cell types cells are: Mahalanobis distances in principal components."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from concerto_tf.models.batches import SAMPLE_VALUES
from concerto_tf.novelty import (
    Scale,
    by_type,
    calibrated_on_all,
    lying_off,
    novelty,
    novelty_together,
)
from concerto_tf.numerics.unit_rows import unit_rows

#: Principal components in which cell types are compared, at most.
COMPONENTS = 50
#: Share of the mean variance within cell types that is added to the variance in every direction.
_RIDGE = 0.1
#: Less than any squared distance between cells.
_NO_DISTANCE = 1e-6
#: What p-values are multiplied by, of new types and of no such tissue.
_TIMES = (1.15, 4.0)


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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What cell types are compared by, of more cells than fit into memory.

    Args:
        cells: Gives cells in random order each time that it is called, in parts: standardized
            values [n, F] and cell types [n].
        n_types: Number of cell types C.
        seed: As in `type_axes`.
        components: As in `type_axes`.

    Returns:
        Axes [F, 50], of the first cells, the mean of each cell type along them [C, 50], and the
        mean direction of the cells of each type [C, F], of unit length.
    """
    ys, labels = [], []
    for y, label in cells():
        ys.append(y)
        labels.append(label)
        if sum(part.size for part in ys) >= SAMPLE_VALUES:
            break
    axes = type_axes(np.concatenate(ys), np.concatenate(labels), seed, components)
    count, sums = np.zeros(n_types), np.zeros((n_types, COMPONENTS))
    directions = np.zeros((n_types, axes.shape[0]))
    for y, label in cells():
        count += np.bincount(label, minlength=n_types)
        member = np.eye(n_types, dtype=np.float32)[label].T
        sums += member @ (y @ axes)
        directions += member @ unit_rows(y)
    mean = sums / np.maximum(count, 1)[:, None]
    return axes, mean.astype(np.float32), unit_rows(directions).astype(np.float32)


def type_conformity(
    y: tf.Tensor,
    log_p: tf.Tensor,
    code: tf.Tensor,
    axes: tf.Tensor,
    mean: tf.Tensor,
    directions: tf.Tensor,
) -> tf.Tensor:
    """How like the cell type that they are taken for cells are.

    Three scores, each about normally distributed among the cells of one type: minus the logarithm
    of the squared Mahalanobis distance to the type; the log odds of the type; and minus the
    logarithm of one minus the cosine with the type's mean direction, to which noise and cells of
    other tissues lie at right angles.

    Args:
        y: Standardized values [B, F].
        log_p: Logits of the cell types [B, C].
        code: Cell type that each cell is taken for [B], int.
        axes, mean, directions: From `measured_types`.

    Returns:
        Conformity scores [B, 3]; higher is more like the cell type.
    """
    distance = tf.reduce_sum(tf.square(tf.matmul(y, axes) - tf.gather(mean, code)), axis=-1)
    own = tf.one_hot(code, log_p.shape[-1], True, False, dtype=tf.bool)
    others = tf.where(own, tf.constant(-np.inf, log_p.dtype), log_p)
    odds = tf.reduce_max(log_p, axis=-1) - tf.reduce_logsumexp(others, axis=-1)
    direction = tf.gather(directions, code)
    cosine = tf.reduce_sum(tf.math.l2_normalize(y, axis=-1) * direction, axis=-1)
    apart = (distance, 1 - cosine)  # which rounding may take below 0
    near, along = (-tf.math.log(tf.maximum(value, _NO_DISTANCE)) for value in apart)
    return tf.stack([near, odds, along], axis=-1)


def type_novelty(
    scores: tf.Tensor, code: tf.Tensor, scale: Scale, known: Sequence[Sequence[float]]
) -> tuple[tf.Tensor, tf.Tensor]:
    """How novel cells are, beside held-out ones.

    The lesser of distance and odds tells new types; direction, a test of its own, what is no cell
    of such a tissue at all. The novelty p-value is the lesser of both p-values times 1.15 and 4:
    most of what may be lost of known cells is lost to the first.

    Args:
        scores: From `type_conformity` [B, 3].
        code: Cell type that each cell is taken for [B].
        scale: Of held-out cells (`scale_by_type`).
        known: Both scores of held-out cells, each ascending; empty where there are none.

    Returns:
        Both scores [B, 2], and the p-value [B]; 1 where no cell was held out.
    """
    measured = by_type(scores, code, scale)
    both = tf.stack([tf.reduce_min(measured[:, :2], axis=-1), measured[:, 2]], axis=-1)
    return both, _p_value(both, known)


def novelty_of_query(
    score: np.ndarray,
    code: np.ndarray,
    z: np.ndarray,
    known: Sequence[Sequence[float]],
    together: Sequence[float],
) -> np.ndarray:
    """How novel the cells of one query are, by themselves and by their company.

    How far the query lies off as a whole does not count; see `lying_off`.

    Args:
        score: Both scores of the cells [n, 2], from `type_novelty`.
        code: Cell type that each cell is taken for [n].
        z: Embeddings [n, d].
        known: Both scores of held-out cells, each ascending; at least one cell.
        together: `mean_together` of the held-out cells, ascending.

    Returns:
        P-values [n], float32.
    """
    score = (score - lying_off(score, code, known)).astype(np.float32)
    alone = _p_value(tf.constant(score), known).numpy()
    return novelty_together(alone, z, calibrated_on_all(together))


def _p_value(both: tf.Tensor, known: Sequence[Sequence[float]]) -> tf.Tensor:
    p_value = tf.ones_like(both[:, 0])
    for i, times in enumerate(_TIMES if known[0] else ()):
        alone = novelty(both[:, i], calibrated_on_all(known[i]), interpolate=True)
        p_value = tf.minimum(p_value, times * alone)
    return p_value
