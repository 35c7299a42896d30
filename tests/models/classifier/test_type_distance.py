"""Distances to the known cell types, against plain NumPy."""

from __future__ import annotations

import numpy as np

from concerto_tf.models.classifier.type_distance import type_axes, type_conformity


def test_conformity_is_mahalanobis_distance_and_log_odds_of_the_type() -> None:
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
    distance = np.einsum("ncf,fg,ncg->nc", apart, inverse, apart)
    p = rng.dirichlet([1, 1, 1], 30)
    code = p.argmax(1)
    found = type_conformity(new, 2 + np.log(p), code, axes, mean @ axes).numpy()
    np.testing.assert_allclose(found[:, 0], -np.log(distance[np.arange(30), code]), rtol=1e-4)
    np.testing.assert_allclose(found[:, 1], np.log(p.max(1) / (1 - p.max(1))), rtol=1e-4)
