from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.losses.vicreg import VICReg, vicreg


def algorithm_1(
    a: np.ndarray, b: np.ndarray, weights: tuple[float, float, float] = (25, 25, 1)
) -> float:
    """The paper's listing, line by line."""
    n, d = a.shape
    invariance = np.mean((a - b) ** 2)
    variance = covariance = 0.0
    for z in (a, b):
        variance += np.mean(np.maximum(0, 1 - np.sqrt(z.var(axis=0, ddof=1) + 1e-4)))
        matrix = np.cov(z.T)
        covariance += sum(matrix[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    return weights[0] * invariance + weights[1] * variance + weights[2] * covariance


def views(n: int = 9, d: int = 4, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    spread = np.linspace(0.2, 2, d) * scale  # some below and some above 1
    return rng.normal(1, spread, (n, d)), rng.normal(-1, spread, (n, d))


@pytest.mark.parametrize("weights", [(25, 25, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_is_the_papers_algorithm(weights: tuple[float, float, float]) -> None:
    a, b = views()
    got = vicreg(tf.constant(a), tf.constant(b), *weights)
    assert got.shape == (9,)
    assert float(tf.reduce_mean(got)) == pytest.approx(algorithm_1(a, b, weights), abs=1e-10)
    assert float(VICReg(*weights)(a, b)) == pytest.approx(algorithm_1(a, b, weights), rel=1e-5)


def test_gradient_is_that_of_the_algorithm(numeric_gradient: Callable) -> None:
    a, b = views(5, 3)
    x = tf.constant(a)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_mean(vicreg(x, tf.constant(b)))
    got = tape.gradient(loss, x).numpy()
    want = numeric_gradient(lambda z: algorithm_1(z, b), a)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_half_precision_is_summed_in_float32() -> None:
    a, b = views(256, 8)
    half = vicreg(tf.cast(a, tf.bfloat16), tf.cast(b, tf.bfloat16))
    assert half.dtype == tf.float32
    assert float(tf.reduce_mean(half)) == pytest.approx(algorithm_1(a, b), rel=0.02)


def test_one_cell_and_cells_that_are_one_point_are_finite() -> None:
    for z in (tf.ones([1, 3]), tf.ones([4, 3])):
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss = tf.reduce_mean(vicreg(z, z))
        assert float(loss) == pytest.approx(2 * 25 * 0.99)
        assert np.isfinite(tape.gradient(loss, z)).all()


def test_training_with_it_does_not_collapse() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype("float32")
    model = keras.Sequential([keras.Input([8]), keras.layers.Dense(8, kernel_initializer="zeros")])
    model.compile(keras.optimizers.Adam(0.02), VICReg())
    model.fit(x, x @ rng.normal(size=(8, 8)).astype("float32"), epochs=30, verbose=0)
    assert model.predict(x, verbose=0).std(axis=0).min() > 0.5


def test_weights_are_checked_and_kept() -> None:
    config = VICReg(1, 2, 3).get_config()
    assert VICReg.from_config(config).get_config() == config
    with pytest.raises(ValueError, match="weights of VICReg must be 0 or more"):
        VICReg(variance=-1)
