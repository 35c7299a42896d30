"""Novelty p-values, against plain NumPy and against many calibrations."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.novelty import (
    Calibration,
    by_type,
    calibrate,
    calibrated_on_all,
    lying_off,
    mean_together,
    novelty,
    novelty_together,
    rejection_rate,
    scale_by_type,
)


def test_p_value_of_cells_like_the_known_ones_is_uniform() -> None:
    rng = np.random.default_rng(0)
    known = calibrate(rng.normal(size=3000))
    found = novelty(tf.constant(rng.normal(size=4000), tf.float32), known).numpy()
    shares = [np.mean(found <= alpha) for alpha in (0.05, 0.2, 0.7)]
    np.testing.assert_allclose(shares, [0.05, 0.2, 0.7], atol=0.05)
    # Where nothing is known nothing is novel, and a few known cells never say 0.
    assert novelty(tf.constant([-9.0]), calibrate(np.empty(0))).numpy().tolist() == [1.0]
    few = calibrate(np.arange(4.0))
    np.testing.assert_allclose(novelty(tf.constant([-9.0, np.nan]), few), 1 / 5)


def test_interpolated_p_value_rises_with_the_score_and_is_the_share_below() -> None:
    held_out = np.sort(np.random.default_rng(0).normal(size=99))
    score = np.sort(np.concatenate([np.random.default_rng(1).normal(size=200) * 3, held_out]))
    known = Calibration(held_out.astype("float32"), 99)
    found = novelty(score.astype("float32"), known, interpolate=True).numpy()
    assert (np.diff(found) >= 0).all() and (np.diff(found) > 0).mean() > 0.9
    assert 0 < found[0] and found[-1] < 1
    below = (held_out.astype("float32") <= score.astype("float32")[:, None]).sum(1)
    assert (found >= below / 100 - 1e-6).all() and (found <= (below + 1) / 100 + 1e-6).all()


def test_rejection_rate_is_that_of_many_calibrations() -> None:
    rng = np.random.default_rng(0)
    held_out = np.sort(rng.random((20_000, 60)), axis=1)
    realized = held_out[:, 2]  # uniform scores; below the third of 60: floor(0.05 * 61) = 3
    mean, low, high = rejection_rate(0.05, 60)
    assert mean == pytest.approx(realized.mean(), abs=2e-3)
    assert (low, high) == pytest.approx(tuple(np.quantile(realized, [0.025, 0.975])), abs=3e-3)
    assert rejection_rate(0.05, 18) == (0.0, 0.0, 0.0)


def test_scores_are_measured_by_the_type() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [4000, 10])
    scores = rng.normal([5.0, -2.0], [2.0, 1.0], (4010, 2)) + 9.0 * label[:, None]
    scale = scale_by_type(scores, label, 3)
    # A type of 10 cells is drawn half way to all cells, one without cells all the way.
    own, every = scores[label == 1], scores
    np.testing.assert_allclose(scale.mean[1], (own.mean(0) + every.mean(0)) / 2, rtol=1e-5)
    np.testing.assert_allclose(scale.width[1] ** 2, (own.var(0) + every.var(0)) / 2, rtol=1e-5)
    np.testing.assert_allclose(scale.mean[2], every.mean(0), rtol=1e-5)
    found = by_type(tf.constant(scores, tf.float32), tf.constant(label), scale).numpy()
    z = (scores[:4000] - scores[:4000].mean(0)) / scores[:4000].std(0)
    np.testing.assert_allclose(found[:4000], z, atol=0.1)


@pytest.mark.parametrize("n", [60, 3000])
def test_novelty_together_keeps_its_rate_and_sees_a_cloud_that_no_cell_shows(n: int) -> None:
    # Known cells of two types; a new type lies apart from both, and conforms only a little less.
    rng = np.random.default_rng(0)
    cells = np.eye(3)[rng.integers(0, 2, 2000)] * 9 + rng.normal(size=(2000, 3))
    score = rng.normal(size=2000)
    known = calibrated_on_all(score)
    by_itself = novelty(known.scores, known, interpolate=True).numpy()[np.argsort(score).argsort()]
    together = calibrate(mean_together(by_itself, cells))

    new = np.arange(n) < n // 4
    query = np.where(new[:, None], [0, 0, 9], np.eye(3)[rng.integers(0, 2, n)] * 9)
    query = query + rng.normal(size=(n, 3))
    score = rng.normal(size=n) - 1.5 * new
    p_value = novelty(score.astype("float32"), known, interpolate=True).numpy()
    found = novelty_together(p_value, query, together)
    # Four standard errors of a share of cells of which five at a time are alike.
    allowed = 4 * np.sqrt(0.05 * 0.95 * 5 / (n - new.sum()))
    assert np.mean(found[~new] < 0.05) < 0.05 + allowed
    assert np.mean(found[new] < 0.05) > np.mean(p_value[new] < 0.05) + 0.15
    assert (found <= 1).all()
    # Fewer than five cells have no company.
    np.testing.assert_array_equal(novelty_together(p_value[:4], query[:4], together), p_value[:4])


def test_a_lone_known_cell_among_new_ones_stays_known_as_a_rule() -> None:
    rng = np.random.default_rng(0)
    known = calibrated_on_all(rng.normal(size=500))
    by_itself = novelty(known.scores, known, interpolate=True).numpy()
    together = calibrate(mean_together(by_itself, rng.normal(size=(500, 3))))
    lost = []
    for _ in range(100):
        score = np.append(rng.normal(-4, 1, 60), rng.normal()).astype("float32")
        p_value = novelty(score, known, interpolate=True).numpy()
        found = novelty_together(p_value, rng.normal(size=(61, 3)), together)
        assert (found[:-1] < 0.05).mean() > 0.9
        lost.append(found[-1] < 0.05)
    assert np.mean(lost) < 0.29  # 1 in 6, and three standard errors


@pytest.mark.parametrize(
    ("off", "counted"), [(0.38, 0.0), (0.6, 0.6), (1.4, 1.4), (1.6, 0.0), (-0.6, 0.0)]
)
def test_a_query_of_another_study_lies_off_as_a_whole(off: float, counted: float) -> None:
    known = np.linspace(-1, 1, 101)
    scores = np.tile(known[::5] - off, 4)[:, None]
    label = np.repeat([0, 1, 2, 3], 21)
    scores[label == 3] -= 5  # a new type, which is taken for one of the known
    assert lying_off(scores, label, [known]) == pytest.approx(-counted, abs=0.02)
