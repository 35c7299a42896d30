"""Standardized values, and principal components with a part of their noise taken out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from concerto_tf.numerics.spread import held_out_share, unit_spread

#: Values from which on components are found by the covariance: 10,000 cells of 5,000 genes.
_MANY_VALUES = 50_000_000


def standardize_by_source(
    x: np.ndarray, source: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Standardizes values within each source.

    Args:
        x: Values [n, genes], float32.
        source: Source codes [n].
        epsilon: Added to the variances.

    Returns:
        Standardized values [n, genes], and the mean variance within sources [genes].
    """
    out = np.empty_like(x)
    within = np.zeros(x.shape[1])
    for code in np.unique(source):
        own = source == code
        mean, variance = x[own].mean(0), x[own].var(0)
        out[own] = (x[own] - mean) / np.sqrt(variance + epsilon)
        within += own.mean() * variance
    return out, within


def noise_edge(variances: np.ndarray, n: int) -> float:
    """The largest variance that a principal component of noise alone has.

    Meant for standardized columns, of which none is signal by itself. The upper edge of the
    spectrum of n independent rows whose columns are independent is, by random-matrix theory, the
    minimum over u of 1 / u + mean(v / (1 - v u)) g / n, u between 0 and 1 / max(v), for g columns
    of variances v. With equal variances it is v (1 + (g / n)**.5)**2.

    Args:
        variances: Variance of each column [g], not all of them 0.
        n: Number of rows.

    Returns:
        The edge.

    Reference:
        Silverstein and Choi, Journal of Multivariate Analysis 54:295 (1995).

    Example:

    >>> import numpy as np
    >>> round(noise_edge(np.ones(400), 100), 3)
    9.0
    """
    from scipy.optimize import minimize_scalar

    v = np.asarray(variances, np.float64) / np.max(variances)
    found = minimize_scalar(
        lambda u: 1 / u + np.sum(v / (1 - v * u)) / n,
        bounds=(0, 1),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(found.fun * np.max(variances))


def principal_components(
    x: np.ndarray, most: int, seed: int, denoise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Principal components with a part of the noise taken out.

    A component of variance v holds about as much noise as one of noise alone (`noise_edge`), so
    that of its variance the share 1 - edge / v is signal. Distances between cells add up all
    components; small ones, of which there are many, would drown them in noise.

    Args:
        x: Values [n, features].
        most: Largest number of components.
        seed: Seed of what the solver begins with.
        denoise: Share of the noise that is taken out: with 1 what is below the edge vanishes.

    Returns:
        Loadings [features, k] and variances [k] of the components, scaled so.
    """
    k = min(most, len(x) - 1, x.shape[1] - 1)
    if k < 1 or not x.var(0).any():
        return np.zeros((x.shape[1], 0), np.float32), np.zeros(0, np.float32)
    if x.size >= _MANY_VALUES and len(x) >= x.shape[1]:
        loadings, variance = _leading_of_many(x, k, seed)
    else:
        from sklearn.decomposition import PCA

        # Exact: of components near the noise, a randomized solver finds others with each seed.
        pca = PCA(k, svd_solver="arpack", random_state=seed).fit(x)
        loadings, variance = pca.components_.T, pca.explained_variance_
    if denoise and variance[0] > 0:
        noise = np.minimum(1, noise_edge(x.var(0), len(x)) / np.maximum(variance, 1e-12))
        signal = 1 - denoise * noise
        loadings, variance = loadings * np.sqrt(signal), variance * signal
    return loadings.astype(np.float32), variance.astype(np.float32)


def _leading_of_many(x: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact components too, by products with the columns' covariance instead of with all values.

    That reads a quarter as much memory or less in each step, in which several threads would do
    little but wait for each other, above all on a busy machine.
    """
    from scipy.sparse.linalg import eigsh
    from threadpoolctl import threadpool_limits

    mean = x.mean(0, dtype=np.float64)
    covariance = (x.T @ x - len(x) * np.outer(mean, mean).astype(x.dtype)) / (len(x) - 1)
    begin = np.random.default_rng(seed).uniform(-1, 1, len(mean)).astype(x.dtype)
    with threadpool_limits(1, "blas"):
        variance, loadings = eigsh(covariance, k, v0=begin)
    variance, loadings = variance[::-1], loadings[:, ::-1]
    largest = loadings[np.abs(loadings).argmax(0), np.arange(k)]
    return loadings * np.sign(largest), np.maximum(variance, 0)


class Directions(NamedTuple):
    """Principal components as the units of an embedding hold them.

    Attributes:
        directions: What values are multiplied with for the units [features, k], float32.
        spread: Standard deviations of the units in the cells seen, and in others [2, k].
    """

    directions: np.ndarray
    spread: np.ndarray


def component_directions(x: np.ndarray, most: int, seed: int, denoise: float) -> Directions:
    """Principal components divided by their typical standard deviation.

    Args:
        x: Values [n, features].
        most: Largest number of components.
        seed: Seed of the solver.
        denoise: As in `principal_components`.

    Returns:
        The directions; none where cells do not differ.
    """
    loadings, variance = principal_components(x, most, seed, denoise)
    if not len(variance) or not variance.mean() > 0:
        return Directions(loadings[:, :0], np.zeros((2, 0), np.float32))
    share = held_out_share(x, len(variance), seed)
    return Directions(loadings / np.sqrt(variance.mean()), unit_spread(variance, share))
