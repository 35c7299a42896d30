"""Counts follow the model's formulas: negative binomial with the BCV trend, then dropout.

Tests of distributions use fixed seeds; each would fail by chance for one seed in 1,000 (where
many genes are tested together, after Bonferroni's correction).
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats

from concerto_tf.simulate import SplatParams
from concerto_tf.simulate import counts as module
from concerto_tf.simulate.counts import CellBlock, draw_cells, draw_counts
from concerto_tf.simulate.genes import GeneModel, draw_genes

ALPHA = 1e-3


def identical_cells(n: int, library: float, group: int = 0, batch: int = 0) -> CellBlock:
    return CellBlock(np.full(n, group), np.zeros(n, int), np.full(n, batch), np.full(n, library))


def model(genes: GeneModel, params: SplatParams, mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shape r and scale s of the gamma rate by Zappia et al.: BCV = (phi + mu^-1/2) * c."""
    bcv = (params.bcv_common + 1 / np.sqrt(mu)) * np.sqrt(genes.noise)
    return 1 / bcv**2, mu * bcv**2


def chi_square(observed: np.ndarray, probability: np.ndarray) -> float:
    """P value of counts 0, 1, 2, ... against their probabilities, rare values pooled."""
    n = len(observed)
    table = np.bincount(observed.astype(int), minlength=len(probability))
    last = int(np.flatnonzero(n * probability >= 5)[-1])
    found = np.append(table[:last], table[last:].sum())
    expected = n * np.append(probability[:last], 1 - probability[:last].sum())
    return stats.chisquare(found, expected).pvalue


# 8 counts per cell in all, and 1,000: rare genes, and genes drawn for every cell
@pytest.mark.parametrize("library", [8.0, 60.0, 1000.0])
def test_counts_are_negative_binomial(library: float) -> None:
    params = SplatParams(n_genes=25, bcv_common=0.4, bcv_df=15, seed=1, out_prob=0.1, out_loc=2)
    genes = draw_genes(params)
    cells = identical_cells(20_000, library)
    counts = draw_counts(np.random.default_rng(0), cells, genes, params).toarray()
    mu = library * genes.means / genes.means.sum()
    r, s = model(genes, params, mu)
    p_values = [
        chi_square(counts[:, g], stats.nbinom(r[g], 1 / (1 + s[g])).pmf(np.arange(3000)))
        for g in np.flatnonzero(mu > 5e-3)
    ]
    assert len(p_values) > 10
    assert min(p_values) > ALPHA / len(p_values)


@pytest.mark.parametrize("dense_above", [0.0, np.inf])
def test_both_ways_of_drawing_agree_with_the_moments(
    monkeypatch: pytest.MonkeyPatch, dense_above: float
) -> None:
    """Each gene's mean and variance over cells of different library sizes."""
    monkeypatch.setattr(module, "DENSE_ABOVE", dense_above)
    params = SplatParams(n_genes=200, lib_loc=6, lib_scale=0.5, seed=2)
    genes = draw_genes(params)
    cells = draw_cells(np.random.default_rng(3), 10_000, params)
    counts = draw_counts(np.random.default_rng(4), cells, genes, params).toarray()
    mu = cells.library[:, None] * genes.means / genes.means.sum()
    variance = mu + mu * model(genes, params, mu)[1]
    z = (counts - mu).sum(0) / np.sqrt(variance.sum(0))
    assert stats.kstest(z, stats.norm.cdf).pvalue > ALPHA
    ratio = np.square(counts - mu).sum(0) / variance.sum(0)
    assert np.mean(ratio[mu.mean(0) > 0.5]) == pytest.approx(1, abs=0.02)


def test_genes_and_cells_are_independent() -> None:
    """Counts given a cell's library are uncorrelated over genes, and over cells of a gene."""
    params = SplatParams(n_genes=60, bcv_common=0.2, seed=5)
    genes = draw_genes(params)
    cells = identical_cells(5000, 100.0)
    counts = draw_counts(np.random.default_rng(0), cells, genes, params).toarray()
    counts = counts[:, counts.mean(0) > 0.05]
    z = (counts - counts.mean(0)) / counts.std(0)
    between = (z.T @ z / len(z))[np.triu_indices(z.shape[1], 1)]
    assert stats.kstest(between * np.sqrt(len(z)), stats.norm.cdf).pvalue > ALPHA
    neighbours = (z[1:] * z[:-1]).mean(0) * np.sqrt(len(z) - 1)
    assert stats.kstest(neighbours, stats.norm.cdf).pvalue > ALPHA


@pytest.mark.parametrize("mid", [-0.5, 1.0])
def test_dropout_is_logistic_in_the_rate(mid: float) -> None:
    """The probability of each count left, by integration over the gamma rate."""
    params = SplatParams(n_genes=6, bcv_common=0.3, dropout_mid=mid, dropout_shape=-1.3, seed=3)
    genes = draw_genes(params)
    n, library = 20_000, 30.0
    cells = identical_cells(n, library)
    counts = draw_counts(np.random.default_rng(0), cells, genes, params).toarray()
    mu = library * genes.means / genes.means.sum()
    r, s = model(genes, params, mu)
    p_values = []
    for g in np.flatnonzero(mu > 0.05):
        rate = stats.gamma(r[g], scale=s[g])

        # the middle of 20,000 equally likely slices of the rate's distribution
        x = rate.ppf((np.arange(20_000) + 0.5) / 20_000)
        # the chance of dropout is 1 / (1 + exp(-shape * (log rate - mid)))
        keep = 1 - 1 / (1 + np.exp(1.3 * (np.log(x) - mid)))
        probability = np.array([(keep * stats.poisson.pmf(y, x)).mean() for y in range(12)])
        probability[11] = (keep * stats.poisson.sf(10, x)).mean()
        probability[0] = 1 - probability[1:].sum()
        p_values.append(chi_square(np.minimum(counts[:, g], 11), probability))
    assert len(p_values) > 3
    assert min(p_values) > ALPHA / len(p_values)


def test_groups_batches_and_steps_have_their_means() -> None:
    params = SplatParams(
        n_genes=150,
        group_sizes=(3, 1),
        batch_sizes=(1, 1),
        de_prob=0.5,
        batch_scale=0.5,
        paths=True,
        path_from=(0, 1),
        path_steps=5,
        lib_loc=6,
        seed=6,
    )
    genes = draw_genes(params)
    cells = draw_cells(np.random.default_rng(0), 8000, params)
    counts = draw_counts(np.random.default_rng(1), cells, genes, params).toarray()
    state = cells.group * 5 + cells.step
    means = genes.batch_means[cells.batch] * genes.factors[state]
    mu = cells.library[:, None] * means / means.sum(1, keepdims=True)
    variance = mu + mu * model(genes, params, mu)[1]
    for group, batch, step in [(0, 0, 0), (0, 1, 4), (1, 0, 2), (1, 1, 4)]:
        own = (cells.group == group) & (cells.batch == batch) & (cells.step == step)
        z = (counts - mu)[own].sum(0) / np.sqrt(variance[own].sum(0))
        assert stats.kstest(z[mu[own].sum(0) > 5], stats.norm.cdf).pvalue > ALPHA / 4


def test_cells_are_drawn_with_their_odds() -> None:
    params = SplatParams(
        group_sizes=(1, 2, 5), batch_sizes=(3, 1), paths=True, path_steps=4, path_skew=0.8
    )
    cells = draw_cells(np.random.default_rng(0), 10_000, params)
    for codes, odds in (
        (cells.group, [1, 2, 5]),
        (cells.batch, [3, 1]),
        (cells.step, [0.8, 0.6, 0.4, 0.2]),
    ):
        expected = np.array(odds) / np.sum(odds) * 10_000
        assert stats.chisquare(np.bincount(codes), expected).pvalue > ALPHA
    logs = np.log(cells.library)
    assert stats.kstest(logs, stats.norm(params.lib_loc, params.lib_scale).cdf).pvalue > ALPHA


def test_matrix_is_canonical() -> None:
    params = SplatParams.droplet(n_genes=400, lib_loc=5, group_sizes=(1, 1), dropout_mid=0.0)
    genes = draw_genes(params)
    cells = draw_cells(np.random.default_rng(0), 300, params)
    counts = draw_counts(np.random.default_rng(0), cells, genes, params)
    assert isinstance(counts, sparse.csr_matrix)
    assert counts.dtype == np.float32
    assert counts.data.min() >= 1
    assert (counts.data == np.round(counts.data)).all()
    canonical = sparse.csr_matrix((counts.data, counts.indices, counts.indptr), counts.shape)
    assert canonical.has_canonical_format  # looked up anew, not taken from a flag


def test_extreme_libraries_are_served() -> None:
    """One deep cell among shallow ones has its counts, and they have theirs."""
    params = SplatParams(n_genes=50, bcv_common=0.0)
    genes = draw_genes(params)
    library = np.array([1e5, *[1.0] * 2000])
    cells = CellBlock(*(np.zeros(2001, int) for _ in range(3)), library)
    counts = draw_counts(np.random.default_rng(0), cells, genes, params)
    # variance of a cell's total: sum of mu * (1 + c**2), at most 3 times the mean
    assert counts[0].sum() == pytest.approx(1e5, abs=4 * np.sqrt(3e5))
    assert counts[1:].sum() == pytest.approx(2000, abs=4 * np.sqrt(3 * 2000))
