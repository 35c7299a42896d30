from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from concerto_tf.layers.noise import GaussianNoise, ScaledNoise

pytestmark = pytest.mark.stack


def test_noise_is_normal_on_the_stated_share_of_genes_and_cells() -> None:
    x = np.random.default_rng(0).gamma(0.5, 1.0, (1000, 400)).astype("float32")
    layer = GaussianNoise(stddev=0.2, fraction=0.8, probability=0.5, seed=1)
    noise = np.asarray(layer(x, training=True)) - x
    changed = noise != 0
    touched = changed.any(1)
    assert abs(touched.mean() - 0.5) < 5 * np.sqrt(0.25 / 1000)  # once in 1.7 million
    assert (changed[touched].sum(1) == 320).all()
    values = np.asarray(layer(tf.zeros([1000, 400]), training=True))
    values = values[values != 0]
    # Kolmogorov-Smirnov: once in a million by chance.
    assert stats.kstest(values, "norm", args=(0, 0.2)).pvalue > 1e-6
    assert np.abs(values).max() > 0.8  # it has tails


def test_noise_of_genes_and_of_cells_does_not_correlate() -> None:
    layer = GaussianNoise(1.0, fraction=1.0, probability=1.0)
    z = np.asarray(layer(tf.zeros([300, 300]), training=True))
    for of in (z, z.T):
        correlation = np.corrcoef(of)[np.triu_indices(300, 1)]
        # 44,850 pairs, the largest of which stays below 6.5 deviations but once in 280,000.
        assert np.abs(correlation).max() < 6.5 / np.sqrt(300)
        # Mean over all pairs: each has variance 1 / 300.
        assert abs(correlation.mean()) < 5 / np.sqrt(300 * len(correlation))
    # Nor do their sizes, which random numbers shared between cells would betray.
    size = np.corrcoef(z**2)[np.triu_indices(300, 1)]
    assert abs(size.mean()) < 5 / np.sqrt(300 * len(size))


def test_scaled_noise_lies_between_0_and_1() -> None:
    x = np.random.default_rng(0).normal(size=(500, 400))
    noise = np.asarray(ScaledNoise(seed=2, dtype="float64")(x, training=True)) - x
    assert noise.min() == pytest.approx(0, abs=1e-12)
    assert noise.max() == pytest.approx(1, abs=1e-12)
    # A linear map of normal noise is normal.
    z = (noise - noise.mean()) / noise.std()
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-6
    assert 0.09 < noise.std() < 0.16


def test_scaled_noise_on_some_genes_of_some_cells() -> None:
    noise = np.asarray(ScaledNoise(0.25, 0.5)(tf.zeros([400, 100]), training=True))
    touched = (noise > 0).any(1)
    assert abs(touched.mean() - 0.5) < 5 * np.sqrt(0.25 / 400)
    # The least noise of all may lie on a chosen gene.
    assert set((noise[touched] > 0).sum(1)) <= {24, 25}


def test_scaled_noise_of_a_single_value_is_nothing() -> None:
    assert ScaledNoise()(tf.ones([1, 1]), training=True).numpy().tolist() == [[1.0]]


@pytest.mark.parametrize("stddev", [-0.1, float("nan"), float("inf")])
def test_stddev_is_checked(stddev: float) -> None:
    with pytest.raises(ValueError, match="stddev must be 0 or more"):
        GaussianNoise(stddev)
