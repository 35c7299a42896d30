"""Distances to the known cell types, against plain NumPy."""

from __future__ import annotations

import numpy as np

from concerto_tf.models.classifier.type_distance import type_axes, type_conformity, type_novelty
from concerto_tf.novelty import scale_by_type


def test_conformity_is_mahalanobis_distance_direction_and_log_odds_of_the_type() -> None:
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
    directions = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    cosine = np.einsum("nf,nf->n", new, directions[code]) / np.linalg.norm(new, axis=1)
    found = type_conformity(new, 2 + np.log(p), code, axes, mean @ axes, directions).numpy()
    np.testing.assert_allclose(found[:, 0], -np.log(distance[np.arange(30), code]), rtol=1e-4)
    np.testing.assert_allclose(found[:, 2], -np.log(1 - cosine), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[:, 1], np.log(p.max(1) / (1 - p.max(1))), rtol=1e-4)


def test_novelty_keeps_its_rate_and_sees_both_new_types_and_no_such_tissue() -> None:
    rng = np.random.default_rng(0)
    code = rng.integers(0, 3, 3000)
    scores = rng.normal(size=(3000, 3)).astype("float32") * [1, 2, 3] + code[:, None]
    held_out, fresh = slice(0, 1000), slice(1000, None)
    scale = scale_by_type(scores[held_out], code[held_out], 3)
    both, nothing_known = type_novelty(scores[held_out], code[held_out], scale, ((), ()))
    assert (nothing_known.numpy() == 1).all()
    known = np.sort(both, axis=0).T.tolist()
    _, p_value = type_novelty(scores[fresh], code[fresh], scale, known)
    # Four standard errors of 2,000 cells and of the 1,000 behind the limit.
    assert abs(np.mean(p_value < 0.05) - 0.05) < 4 * np.sqrt(0.05 * 0.95 * (1 / 2000 + 1 / 1000))
    for i in range(3):
        strange = scores[fresh].copy()
        strange[:, i] -= 4.5 * (i + 1)
        assert np.mean(type_novelty(strange, code[fresh], scale, known)[1] < 0.05) > 0.9
