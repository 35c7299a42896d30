"""Distances to the known cell types, against plain NumPy."""

from __future__ import annotations

import numpy as np

from concerto_tf.models.classifier.type_distance import (
    novelty_of_query,
    type_axes,
    type_conformity,
    type_novelty,
)
from concerto_tf.novelty import Scale, mean_together, scale_by_type


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


def test_what_a_query_shares_is_no_novelty_and_a_new_type_still_is() -> None:
    """Known cells of another study lie off by what all types share; a tissue by more."""
    rng = np.random.default_rng(0)
    held_out = rng.normal(size=(1000, 2)).astype("float32")
    known = np.sort(held_out, axis=0).T.tolist()
    # Of a type whose scores lie at 0; the odds, of 99, are never the lesser.
    scale = Scale(np.zeros((1, 3), "f4"), np.ones((1, 3), "f4"))
    scores = np.insert(held_out, 1, 99.0, axis=1)
    p_value = type_novelty(scores, np.zeros(1000, int), scale, known)[1].numpy()
    together = np.sort(mean_together(p_value, rng.normal(size=(1000, 20))))

    def lost(off: float, new: int, types: int = 4) -> tuple[float, float]:
        score = rng.normal(size=(1200, 2)).astype("float32") + off
        code = rng.integers(0, types, 1200)
        score[:new, 0] -= 3  # cells of a new type, taken for those of one
        code[:new] = 0
        z = rng.normal(size=(1200, 20))
        z[:new] += 9
        unknown = novelty_of_query(score, code, z, known, together) < 0.05
        return float(unknown[new:].mean()), float(unknown[:new].mean()) if new else 0.0

    # Four standard errors of the share, and of the 1,000 held-out cells behind the limit.
    most = 0.05 + 4 * np.sqrt(0.05 * 0.95 * (1 / 900 + 1 / 1000))
    for new in (0, 300):
        as_it_was, shifted = lost(0.0, new), lost(-1.2, new)
        assert as_it_was[0] < most and shifted[0] < most
        assert not new or min(as_it_was[1], shifted[1]) > 0.9
    assert lost(-2.5, 0)[0] > 0.5
    assert lost(-1.2, 0, types=1)[0] > 0.15
