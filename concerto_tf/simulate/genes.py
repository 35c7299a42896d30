"""What all cells of a simulation share: gene means, and what groups and batches do to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from concerto_tf.simulate.params import SplatParams


@dataclass(frozen=True)
class GeneModel:
    """The genes of one simulated experiment.

    A cell in state s and batch b has expected expression `batch_means[b] * factors[s]`, which is
    scaled to the cell's library size. A state is a group, or one step of one path.

    Attributes:
        means: [G] float64 gene means with outliers in place.
        outliers: [G] bool.
        noise: [G] float64, the squared inverse chi-square factor of the gene's BCV.
        group_factors: [groups, G] float64 factor of each group (of each path's end) relative to
            where it comes from.
        factors: [states, G] float32 factor of each state relative to the origin.
        peaks: [groups, G] float64 largest factor over the states of a group.
        steps: states per group (1 unless paths).
        batch_factors: [batches, G] float64.
        batch_means: [batches, G] float64, `means * batch_factors`.
        totals: [states, batches] float64 sum of expected expression over genes.
        starts: [groups] float64 pseudotime at which a path begins.
    """

    means: np.ndarray
    outliers: np.ndarray
    noise: np.ndarray
    group_factors: np.ndarray
    factors: np.ndarray
    peaks: np.ndarray
    steps: int
    batch_factors: np.ndarray
    batch_means: np.ndarray
    totals: np.ndarray
    starts: np.ndarray


def lognormal_factors(
    rng: np.random.Generator, n: int, prob: float, down_prob: float, loc: float, scale: float
) -> np.ndarray:
    """Multiplicative factors: 1 for genes not selected, else lognormal, turned up or down.

    A factor that goes up is at least 1 and one that goes down at most 1, whatever its draw.

    Args:
        rng: source of randomness.
        n: number of genes.
        prob: probability that a gene is selected.
        down_prob: probability that a selected gene goes down.
        loc: mean of the factor's logarithm before it is turned.
        scale: standard deviation of that logarithm.

    Returns:
        [n] float64.
    """
    selected = rng.random(n) < prob
    sign = np.where(rng.random(n) < down_prob, -1.0, 1.0)
    size = np.abs(rng.normal(loc, scale, n))
    return np.where(selected, np.exp(sign * size), 1.0)


def draw_genes(params: SplatParams) -> GeneModel:
    """Draws everything that belongs to genes; depends on the seed but not on the cells."""
    rng = np.random.default_rng(np.random.SeedSequence(params.seed, spawn_key=(0,)))
    n = params.n_genes
    means = rng.gamma(params.mean_shape, 1.0 / params.mean_rate, n)
    outliers = rng.random(n) < params.out_prob
    # as |log factor|, like the other factors: an outlier is never below the median
    factor = np.exp(np.abs(rng.normal(params.out_loc, params.out_scale, n)))
    means = np.where(outliers, np.median(means) * factor, means)
    # a gene of mean 0 (underflow of a gamma draw) would have no defined variation
    means = np.maximum(means, np.finfo(np.float32).tiny)
    if np.isinf(params.bcv_df):
        noise = np.ones(n)
    else:
        noise = params.bcv_df / rng.chisquare(params.bcv_df, n)
    group_factors = np.stack(
        [
            lognormal_factors(rng, n, *values)
            for values in zip(
                *(params.each(k) for k in ("de_prob", "de_down_prob", "de_loc", "de_scale")),
                strict=True,
            )
        ]
    )
    if params.n_groups == 1 and not params.paths:  # one group has nothing to differ from
        group_factors = np.ones((1, n))
    batch_factors = np.ones((params.n_batches, n))
    if params.n_batches > 1:
        for b, values in enumerate(
            zip(params.each("batch_loc"), params.each("batch_scale"), strict=True)
        ):
            batch_factors[b] = lognormal_factors(rng, n, 1.0, 0.5, *values)
    if params.paths:
        factors, starts = _paths(rng, params, group_factors)
        steps = params.path_steps
    else:
        factors, starts, steps = group_factors, np.zeros(params.n_groups), 1
    factors = factors.astype(np.float32)
    batch_means = means * batch_factors
    return GeneModel(
        means=means,
        outliers=outliers,
        noise=noise,
        group_factors=group_factors,
        factors=factors,
        peaks=factors.reshape(params.n_groups, steps, n).max(1).astype(np.float64),
        steps=steps,
        batch_factors=batch_factors,
        batch_means=batch_means,
        totals=np.stack([(factors @ m) for m in batch_means], axis=1),
        starts=starts,
    )


def _paths(
    rng: np.random.Generator, params: SplatParams, group_factors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Factors of every step of every path [paths * steps, G], and the paths' first pseudotimes."""
    n, steps = params.n_genes, params.path_steps
    origins = params.path_from or (0,) * params.n_groups
    ends = [np.ones(n)]
    begins = [0.0]
    factors = np.empty((params.n_groups, steps, n), np.float32)
    t = np.linspace(0.0, 1.0, steps)[:, None]
    for path, origin in enumerate(origins):
        start, end = ends[origin], ends[origin] * group_factors[path]
        line = start + t * (end - start)
        wander = np.flatnonzero(rng.random(n) < params.path_nonlinear_prob)
        if len(wander):
            walk = rng.normal(0.0, (steps - 1) ** -0.5, (steps - 1, len(wander))).cumsum(0)
            walk = np.concatenate([np.zeros((1, len(wander))), walk])
            bridge = walk - t * walk[-1]
            middle = (start[wander] + end[wander]) / 2
            # expression stays positive: a walk that would cross zero rests just above it
            line[:, wander] = np.maximum(
                line[:, wander] + params.path_sigma * middle * bridge, 1e-3 * middle
            )
        factors[path] = line
        ends.append(end)
        begins.append((begins[origin] + 1.0) if origin else 0.0)
    return factors.reshape(-1, n), np.array(begins[1:])
