from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.layers import LogNormalize

pytestmark = pytest.mark.stack

COUNTS = np.array([[3.0, 0.0, 7.0], [0.0, 0.0, 0.0], [1.0, 1.0, 2.0]])


def test_is_log1p_of_counts_per_ten_thousand() -> None:
    out = LogNormalize(dtype="float64")(COUNTS)
    want = np.log1p(1e4 * COUNTS / np.maximum(COUNTS.sum(1, keepdims=True), 1))
    np.testing.assert_allclose(out, want, rtol=1e-14)


def test_total_may_cover_more_genes_than_the_values() -> None:
    out = LogNormalize(dtype="float64")(COUNTS, total=np.array([100.0, 0.0, 50.0]))
    np.testing.assert_allclose(out[0], np.log1p(1e4 * COUNTS[0] / 100))
    np.testing.assert_array_equal(out[1], 0)


def test_none_passes_values_on() -> None:
    np.testing.assert_array_equal(LogNormalize(None)(COUNTS.astype("float32")), COUNTS)


def test_large_counts_stay_exact_under_half_precision() -> None:
    counts = np.array([[257.0, 10_000.0 - 257.0]], np.float32)  # 257 does not fit into bfloat16
    out = LogNormalize(1e4, dtype="mixed_bfloat16")(counts)
    assert out.dtype == tf.bfloat16
    want = tf.cast(np.log1p(np.float32(257.0)), tf.bfloat16)
    assert float(out[0, 0]) == float(want)


def test_target_must_be_positive() -> None:
    with pytest.raises(ValueError, match="target_sum must be positive"):
        LogNormalize(0)
