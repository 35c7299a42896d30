"""Tests of groups: p-values against their formulas, and families of tests."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

from concerto_tf.tasks.comparison.groups import adjust, rank_skewness, skewed_p, t_test


def test_t_test_is_students() -> None:
    rng = np.random.default_rng(0)
    case, control = rng.normal(size=(3, 7)), rng.normal(1, 2, size=(4, 7))
    np.testing.assert_allclose(t_test(case, control), stats.ttest_ind(case, control).pvalue)
    assert np.isnan(t_test(case[:1], control)).all()
    assert np.isnan(t_test(np.ones((2, 1)), np.ones((2, 1)))).all()


def test_skewness_is_that_over_all_choices() -> None:
    from itertools import combinations

    values = np.array([0, 0, 0, 0, 0, 0, 1.0, 1, 2])
    sums = [stats.rankdata(values)[list(c)].sum() for c in combinations(range(9), 3)]
    found = rank_skewness(sp.csc_matrix(values[:, None]), 3)
    assert found[0] == pytest.approx(stats.skew(sums))
    assert rank_skewness(sp.csc_matrix((9, 1)), 3)[0] == 0


def test_p_without_skewness_is_normal() -> None:
    z = np.array([-2.0, 0.0, 1.0, 4.0])
    np.testing.assert_allclose(skewed_p(z, np.zeros(4)), 2 * stats.norm.sf(np.abs(z)))
    assert skewed_p(np.array([4.0]), np.ones(1)) > 10 * skewed_p(np.array([4.0]), np.zeros(1))


def test_each_type_is_a_family_of_tests_of_its_own() -> None:
    p = [0.01, 0.02, 0.5, 0.01, 0.04]
    table = adjust(pd.DataFrame({"p": p, "cell_type": list("aabbb")}), "p", by="cell_type")
    np.testing.assert_allclose(table["p_adjusted"], [0.02, 0.02, 0.5, 0.03, 0.06])


def test_adjusted_p_is_over_all_rows_that_have_one() -> None:
    table = adjust(pd.DataFrame({"p": [0.01, np.nan, 0.02, 0.5]}), "p")
    np.testing.assert_allclose(table["p_adjusted"], [0.03, np.nan, 0.03, 0.5])
