"""How much more cells spread in an embedding if the model was trained on them."""

from __future__ import annotations

import logging

import numpy as np

_log = logging.getLogger("concerto_tf")
#: Parts of the cells of which one is held out, and cells to be held out in all at least.
_FOLDS, _HELD_OUT_CELLS = 5, 500
#: How much a line that tells whether cells were trained on is drawn to 0, and its slope from which
#: on they were not: over all methods it was 0.16 at most for those trained on, 0.43 at least for
#: others.
_THROUGH_0, _UNSEEN_SLOPE, _SWEEPS = 0.05, 0.3, 30
#: The least that a unit is multiplied by.
_LEAST = 0.01
#: Cells that are looked at together: there may be millions.
_AT_ONCE = 100_000


def held_out_share(x: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Spread of unseen cells along principal components, as a share of that of the cells seen.

    Principal components of few cells follow their noise. Along a component, unseen cells therefore
    spread less than the cells that it was computed from.

    Args:
        x: Values [n, features].
        k: Number of components.
        seed: Seed of the solver, and of which cells are held out: a fifth, or several fifths in
            turn where there are few cells.

    Returns:
        Root mean square of held-out cells along each component as a share of the others'
        standard deviation [k], 1 at most.
    """
    from sklearn.decomposition import PCA

    n = len(x)
    if n < 2 * _FOLDS or not k:
        return np.ones(k, np.float32)
    fold = np.random.default_rng(seed).permutation(n) % _FOLDS
    squares, variances = np.zeros(k), np.zeros(k)
    for held_out in range(min(_FOLDS, -(-_HELD_OUT_CELLS * _FOLDS // n))):
        seen, unseen = x[fold != held_out], x[fold == held_out]
        most = min(k, len(seen) - 1)
        pca = PCA(
            most, svd_solver="randomized", iterated_power=4, random_state=seed, copy=False
        ).fit(seen)
        # Of few cells there are fewer components than asked for; the others are like the last.
        wide = (0, k - most)
        squares += np.pad((pca.transform(unseen) ** 2).sum(0, dtype=np.float64), wide, mode="edge")
        variances += np.pad(pca.explained_variance_, wide, mode="edge") * len(unseen)
    share = np.sqrt(squares / np.maximum(variances, 1e-24))
    return np.minimum(share, 1).astype(np.float32)


def unit_spread(variance: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Standard deviations of an embedding's units that hold principal components.

    Args:
        variance: Variances of the components [k], which the embedding divides by their mean.
        share: From `held_out_share` [k].

    Returns:
        Those of cells trained on, and of others [2, k].
    """
    return np.sqrt(variance / variance.mean()) * np.stack([np.ones_like(share), share])


def as_unseen(embeddings: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Factors that take the embeddings of cells trained on to where unseen cells would lie.

    Args:
        embeddings: Of the cells of a reference [n, d], seen from the middle.
        spread: Standard deviations of the units in cells trained on, and in others [2, d].

    Returns:
        Factor of each unit [d]; ones where the cells already spread as unseen cells do.
    """
    seen, unseen = spread
    held = seen > 1e-6  # the units that hold components
    share = np.ones_like(seen)
    share[held] = np.clip(unseen[held] / seen[held], _LEAST, 1)
    if (share == 1).all():
        return share
    moments = np.zeros((2, len(seen)))
    for start in range(0, len(embeddings), _AT_ONCE):
        part = embeddings[start : start + _AT_ONCE].astype(np.float64)
        moments += [part.sum(0), (part**2).sum(0)]
    mean, square = moments / len(embeddings)
    here = np.sqrt(np.maximum(square - mean**2, 1e-24))
    slope = _slope(np.log(share[held]), np.log(here[held] / seen[held]))
    trained = slope < _UNSEEN_SLOPE
    _log.debug("reference cells spread as cells %strained on", "" if trained else "not ")
    return share if trained else np.ones_like(share)


def _slope(expected: np.ndarray, found: np.ndarray) -> float:
    """How far units spread as expected of cells not trained on: 0 if they were, 1 if not.

    The slope of a line of least absolute deviations: in a few units cell types lie apart, of
    which a reference may lack some. Training may have stretched all units, so that the line need
    not go through 0, but nearly.

    Args:
        expected: Logarithms of the shares that units of cells not trained on spread by [n].
        found: The same as found in a reference [n].
    """
    weight, slope = np.ones(len(expected)), 0.0
    for _ in range(_SWEEPS):
        weight /= weight.sum()
        center, level = weight @ expected, weight @ found
        within = weight @ ((expected - center) * (found - level))
        variance = weight @ (expected - center) ** 2
        slope = (within + _THROUGH_0 * center * level) / (variance + _THROUGH_0 * center**2)
        line = (level - slope * center) * (1 - _THROUGH_0) + slope * expected
        weight = 1 / np.maximum(np.abs(found - line), 0.05)
    return float(slope)
