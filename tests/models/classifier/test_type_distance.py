"""Distances to the known cell types, against plain NumPy."""

from __future__ import annotations

import numpy as np

from concerto_tf.models.classifier.type_distance import type_axes, type_conformity


def test_conformity_is_the_mahalanobis_distance_in_principal_components() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 400)
    y = rng.normal(size=(3, 8))[label] * 3 + rng.normal(size=(400, 8)) @ rng.normal(size=(8, 8))
    axes = type_axes(y, label).astype("float64")
    assert axes.shape == (8, 50) and not axes[:, 8:].any()
    mean = np.stack([y[label == c].mean(0) for c in range(3)])
    rest = y - mean[label]
    spread = rest.T @ rest / 397
    spread += 0.1 * np.trace(spread) / 8 * np.eye(8)
    inverse = np.linalg.inv(spread)
    new = rng.normal(size=(30, 8)) * 4
    apart = new[:, None] - mean
    want = -np.einsum("ncf,fg,ncg->nc", apart, inverse, apart).min(1)
    np.testing.assert_allclose(type_conformity(new, axes, mean @ axes), want, rtol=1e-4)
