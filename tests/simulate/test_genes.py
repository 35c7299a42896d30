"""Gene means and factors follow the distributions they are said to have.

Tests of distributions use fixed seeds; each would fail by chance for one seed in 1,000.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from concerto_tf.simulate import SplatParams
from concerto_tf.simulate.genes import draw_genes, lognormal_factors

ALPHA = 1e-3


def test_means_are_gamma() -> None:
    genes = draw_genes(SplatParams(n_genes=5000, out_prob=0, mean_shape=0.6, mean_rate=0.3))
    assert stats.kstest(genes.means, stats.gamma(0.6, scale=1 / 0.3).cdf).pvalue > ALPHA
    assert not genes.outliers.any()


def test_outliers_are_lognormal_times_the_median() -> None:
    params = SplatParams(n_genes=20_000, out_prob=0.05, out_loc=4, out_scale=0.5)
    genes = draw_genes(params)
    assert stats.binomtest(int(genes.outliers.sum()), 20_000, 0.05).pvalue > ALPHA
    # the gamma draws before outliers are put in are the same stream without any
    median = np.median(draw_genes(SplatParams(n_genes=20_000, out_prob=0)).means)
    size = np.log(genes.means[genes.outliers] / median)
    assert stats.kstest(size, stats.norm(4, 0.5).cdf).pvalue > ALPHA


def test_bcv_noise_is_inverse_chi_square() -> None:
    genes = draw_genes(SplatParams(n_genes=5000, bcv_df=20))
    assert stats.kstest(20 / genes.noise, stats.chi2(20).cdf).pvalue > ALPHA
    assert (draw_genes(SplatParams(n_genes=10, bcv_df=np.inf)).noise == 1).all()


def test_factors_go_up_and_down() -> None:
    f = lognormal_factors(np.random.default_rng(0), 20_000, 0.3, 0.2, 0.1, 0.4)
    assert stats.binomtest(int((f != 1).sum()), 20_000, 0.3).pvalue > ALPHA
    changed = np.log(f[f != 1])
    assert stats.binomtest(int((changed < 0).sum()), len(changed), 0.2).pvalue > ALPHA
    folded = stats.foldnorm(0.1 / 0.4, scale=0.4)
    assert stats.kstest(np.abs(changed), folded.cdf).pvalue > ALPHA


def test_each_group_has_its_own_strength() -> None:
    genes = draw_genes(SplatParams(n_genes=2000, group_sizes=(1, 1), de_prob=(0.0, 0.5)))
    assert (genes.group_factors[0] == 1).all()
    assert 0.4 < (genes.group_factors[1] != 1).mean() < 0.6


def test_batches_change_every_gene() -> None:
    genes = draw_genes(SplatParams(n_genes=500, batch_sizes=(1, 1)))
    assert (genes.batch_factors != 1).all()
    np.testing.assert_allclose(genes.batch_means, genes.means * genes.batch_factors)
    assert (draw_genes(SplatParams(n_genes=500)).batch_factors == 1).all()


def test_paths_join_where_they_are_said_to() -> None:
    params = SplatParams(
        n_genes=300, group_sizes=(1, 1, 1), paths=True, path_from=(0, 1, 0), path_steps=50
    )
    genes = draw_genes(params)
    steps = genes.factors.reshape(3, 50, 300)
    np.testing.assert_allclose(steps[0, 0], 1, rtol=1e-5)
    np.testing.assert_allclose(steps[2, 0], 1, rtol=1e-5)
    np.testing.assert_allclose(steps[0, -1], genes.group_factors[0], rtol=1e-5)
    np.testing.assert_allclose(steps[1, 0], steps[0, -1], rtol=1e-5)
    np.testing.assert_allclose(steps[1, -1], np.prod(genes.group_factors[:2], axis=0), rtol=1e-5)
    np.testing.assert_array_equal(genes.starts, [0, 1, 0])
    assert (steps > 0).all()
    np.testing.assert_array_equal(genes.peaks, steps.max(1))


def test_nonlinear_genes_are_brownian_bridges() -> None:
    """Midway, a bridge over [0, 1] has variance 1/4; elsewhere genes are on the line."""
    params = SplatParams(
        n_genes=4000,
        paths=True,
        de_prob=0.0,
        path_nonlinear_prob=0.3,
        path_steps=101,
        path_sigma=0.2,
    )
    middle = draw_genes(params).factors[50].astype(float) - 1
    wandering = middle[middle != 0]
    assert stats.binomtest(len(wandering), 4000, 0.3).pvalue > ALPHA
    assert stats.kstest(wandering, stats.norm(0, 0.2 * 0.5).cdf).pvalue > ALPHA


@pytest.mark.parametrize("paths", [False, True])
def test_totals_are_sums_over_genes(paths: bool) -> None:
    params = SplatParams(n_genes=50, group_sizes=(1, 1), batch_sizes=(1, 1, 1), paths=paths)
    genes = draw_genes(params)
    assert genes.totals.shape == (200 if paths else 2, 3)
    expected = (genes.factors[1] * genes.batch_means[2]).sum()
    assert genes.totals[1, 2] == pytest.approx(expected)
