from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.losses import NTXent, nt_xent


def reference(a: np.ndarray, b: np.ndarray, temperature: float) -> float:
    """Equations 7 to 9, index by index: cell k has the views 2k and 2k + 1."""
    z = np.empty((2 * len(a), a.shape[1]))
    z[0::2], z[1::2] = a, b

    def s(i: int, j: int) -> float:
        return z[i] @ z[j] / (temperature * np.linalg.norm(z[i]) * np.linalg.norm(z[j]))

    def term(i: int, j: int) -> float:
        others = sum(np.exp(s(i, k)) for k in range(len(z)) if k != i)
        return -np.log(np.exp(s(i, j)) / others)

    n = len(a)
    return sum(term(2 * k, 2 * k + 1) + term(2 * k + 1, 2 * k) for k in range(n)) / (2 * n)


def views(n: int = 7, d: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(n, d))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_is_the_papers_equation(temperature: float) -> None:
    a, b = views()
    got = tf.reduce_mean(nt_xent(tf.constant(a), tf.constant(b), temperature))
    assert float(got) == pytest.approx(reference(a, b, temperature), abs=1e-12)
    assert float(NTXent(temperature)(a, b)) == pytest.approx(float(got), abs=1e-6)


def test_gradient_is_that_of_the_equation(numeric_gradient: Callable) -> None:
    a, b = views(4, 3)
    x = tf.constant(a)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_mean(nt_xent(x, tf.constant(b), 0.3))
    got = tape.gradient(loss, x).numpy()
    want = numeric_gradient(lambda z: reference(z, b, 0.3), a)
    np.testing.assert_allclose(got, want, atol=1e-7)


def test_half_precision_views_are_compared_in_float32() -> None:
    a, b = views(64, 16)
    half = nt_xent(tf.cast(a, tf.bfloat16), tf.cast(b, tf.bfloat16), 0.1)
    assert half.dtype == tf.float32
    assert float(tf.reduce_mean(half)) == pytest.approx(reference(a, b, 0.1), rel=0.02)


def test_works_as_the_loss_of_somebody_elses_model() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype("float32")
    model = keras.Sequential([keras.Input([8]), keras.layers.Dense(8)])
    model.compile(keras.optimizers.Adam(0.01), NTXent(0.5))
    losses = model.fit(x, x @ rng.normal(size=(8, 8)).astype("float32"), epochs=20, verbose=0)
    assert losses.history["loss"][-1] < losses.history["loss"][0] - 0.3


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        NTXent(0.0)


def test_groups_leave_the_cells_of_other_groups_out() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(9, 4)) for _ in range(2))
    groups = np.array([0, 1, 0, 1, 0, 1, 1, 0, 2], np.int32)
    got = np.array(nt_xent(tf.constant(a), tf.constant(b), 0.3, tf.constant(groups)))
    for group in range(3):
        own = groups == group
        want = nt_xent(tf.constant(a[own]), tf.constant(b[own]), 0.3)
        np.testing.assert_allclose(got[own], want, atol=1e-12)
    assert got[8] == pytest.approx(0, abs=1e-12)  # nobody to be told from
