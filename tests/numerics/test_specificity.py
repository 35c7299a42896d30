"""Specificity of groups on a matrix that is known."""

from __future__ import annotations

import numpy as np

from concerto_tf.numerics.specificity import GroupSums


def test_specificity_hardly_depends_on_a_genes_scale() -> None:
    rng = np.random.default_rng(0)
    factor = np.array([1, 10, 100, 1, 1, 1, 1, 1.0])
    group, x = np.repeat([0, 1], 50), rng.poisson(2.0, (100, 8))
    x[:, 0] += np.where(group == 0, 3, 0)
    x[:, 1:3] = x[:, :1]
    at = np.nonzero(x)
    sums = GroupSums(2, 8)
    sums.add(group, *at, (x * factor)[at])
    specificity = sums.specificity()[0]
    assert specificity[:3].min() > 2 * np.abs(specificity[3:]).max()
    np.testing.assert_allclose(specificity[1], specificity[2], rtol=0.2)
