"""Standardized values and denoised components."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from concerto_tf.numerics import components
from concerto_tf.numerics.components import (
    noise_edge,
    principal_components,
    standardize_by_source,
)


def test_values_are_standardized_within_their_source() -> None:
    rng = np.random.default_rng(0)
    source = np.repeat([0, 3], [20, 40])
    x = rng.normal(size=(60, 4)) * (1 + source[:, None]) + 5 * source[:, None]
    y, within = standardize_by_source(x, source, epsilon=0.5)
    for code in (0, 3):
        own = x[source == code]
        want = (own - own.mean(0)) / np.sqrt(own.var(0) + 0.5)
        np.testing.assert_allclose(y[source == code], want)
    np.testing.assert_allclose(within, x[:20].var(0) / 3 + x[20:].var(0) * 2 / 3)


@pytest.mark.parametrize(("n", "genes"), [(200, 800), (800, 200), (500, 500)])
def test_the_edge_is_where_noise_ends(n: int, genes: int) -> None:
    rng = np.random.default_rng(n)
    deviation = rng.uniform(0.2, 1.0, genes)  # as genes differ
    top = [
        np.linalg.eigvalsh(np.cov((rng.normal(size=(n, genes)) * deviation).T))[-1]
        for _ in range(5)
    ]
    # Largest eigenvalues spread by about n^(-2/3) around the edge: 2% here.
    assert noise_edge(deviation**2, n) == pytest.approx(np.mean(top), rel=0.04)


def test_equal_variances_have_marchenko_and_pastur_s_edge() -> None:
    for n, genes in ((100, 400), (1000, 30)):
        want = 2.5 * (1 + np.sqrt(genes / n)) ** 2
        assert noise_edge(np.full(genes, 2.5), n) == pytest.approx(want, rel=1e-6)
    # A feature that does not vary takes no part.
    assert noise_edge(np.r_[np.ones(400), np.zeros(50)], 100) == pytest.approx(9, rel=1e-6)


def test_noise_is_taken_out_of_components() -> None:
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(2, 60)) * [[1.5], [0.7]]
    x = (rng.normal(size=(300, 60)) + rng.normal(size=(300, 2)) @ spread).astype(np.float32)
    plain, edge = PCA(6).fit(x), noise_edge(x.var(0), 300)
    z = plain.transform(x)
    for share in (0.0, 0.5, 1.0):
        loadings, variance = principal_components(x, 6, seed=0, denoise=share)
        found = (x - x.mean(0)) @ loadings
        signal = 1 - share * np.minimum(1, edge / plain.explained_variance_)
        np.testing.assert_allclose(np.abs(found), np.abs(z * np.sqrt(signal)), atol=2e-3)
        np.testing.assert_allclose(variance, found.var(0, ddof=1), rtol=1e-2, atol=1e-6)
        if share == 1:
            assert signal[0] > 0.8 and 0.2 < signal[1] < signal[0] and variance[2:].max() < 1e-6


def test_components_of_many_values_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(900, 5)) @ rng.normal(size=(5, 300)) + rng.normal(size=(900, 300)) + 0.1
    x = x.astype(np.float32)
    loadings, variance = principal_components(x, 20, seed=3, denoise=0.5)
    monkeypatch.setattr(components, "_MANY_VALUES", 0)
    again, same = principal_components(x, 20, seed=3, denoise=0.5)
    np.testing.assert_allclose(same, variance, rtol=1e-4)
    np.testing.assert_allclose(np.abs((again * loadings).sum(0)), (loadings**2).sum(0), rtol=1e-3)
    np.testing.assert_array_equal(principal_components(x, 20, seed=3, denoise=0.5)[0], again)
