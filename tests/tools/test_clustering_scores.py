"""Clusterings against labels, in each convention of the papers."""

from __future__ import annotations

import numpy as np
import pytest

from concerto_tf.errors import InputError
from concerto_tf.metrics import kmeans_scores, leiden_scores
from protocols.clustering_scores import clustering_scores, leiden_f1


def test_scores_are_those_of_the_metrics_that_take_one_convention() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(["a", "b", "c"], [40, 30, 20])
    z = rng.normal(size=(90, 4)) + np.repeat(np.eye(4)[:3] * 3, [40, 30, 20], axis=0)
    scores = clustering_scores(z, labels, seed=3)
    ways, measures = ("kmeans", "leiden", "leiden1"), ("ari", "nmi", "nmi_max")
    assert list(scores) == [f"{measure}_{way}" for way in ways for measure in measures]
    for key, value in {**kmeans_scores(z, labels, seed=3), **leiden_scores(z, labels, 3)}.items():
        assert scores[key] == pytest.approx(value)
    # at one resolution it is never better than at the best of several
    assert scores["nmi_leiden1"] <= scores["nmi_leiden"]


def test_one_label_cannot_be_agreed_with() -> None:
    with pytest.raises(InputError, match="at least 2 different labels"):
        clustering_scores(np.zeros((4, 2)), ["a"] * 4)


def test_a_rare_type_is_recovered_by_a_cluster_of_its_own() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(300, 4))
    labels = np.array(["common"] * 280 + ["rare"] * 20)
    apart = z.copy()
    apart[280:] += 12
    assert leiden_f1(apart, labels, "rare") == 1
    # Five of the others are with it: precision 20/25, recall 1.
    apart[:5] += 12
    assert leiden_f1(apart, labels, "rare") == pytest.approx(2 * 20 / (25 + 20))
    assert leiden_f1(z, labels, "rare") < 0.5
    with pytest.raises(InputError, match="no cell has the label 'absent'"):
        leiden_f1(z, labels, "absent")
