"""SourceBatchNormalization against statistics computed source by source."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.layers.source_normalization import (
    SourceBatchNormalization,
    merge_moments,
    moments_by_source,
    pool_moments,
)

pytestmark = pytest.mark.stack

F = 3


def data(sizes: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cells of several sources with own means and spreads, mixed."""
    rng = np.random.default_rng(seed)
    source = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    x = rng.normal(2.0 * source[:, None], 1.0 + source[:, None], (len(source), F))
    order = rng.permutation(len(source))
    return x[order], source[order]


def by_source(x: np.ndarray, source: np.ndarray, epsilon: float) -> np.ndarray:
    out = np.empty_like(x)
    for s in np.unique(source):
        own = source == s
        out[own] = (x[own] - x[own].mean(0)) / np.sqrt(x[own].var(0) + epsilon)
    return out


@pytest.mark.parametrize("sizes", [(30,), (12, 20), (8, 9, 30)])
def test_training_normalises_within_each_source(sizes: tuple[int, ...]) -> None:
    x, source = data(sizes)
    layer = SourceBatchNormalization(len(sizes), epsilon=1e-3, dtype="float64")
    out = layer(x, source=source, training=True)
    np.testing.assert_allclose(out, by_source(x, source, 1e-3), atol=1e-10)


def test_gradient_is_that_of_the_equations(numeric_gradient: Callable) -> None:
    x, source = data((6, 7))
    layer = SourceBatchNormalization(2, dtype="float64")
    weight = tf.constant(np.random.default_rng(1).normal(size=x.shape))
    v = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(v)
        loss = tf.reduce_sum(weight * layer(v, source=source, training=True))
    got = tape.gradient(loss, v).numpy()
    want = numeric_gradient(lambda z: (weight.numpy() * by_source(z, source, 1e-3)).sum(), x)
    np.testing.assert_allclose(got, want, atol=1e-7)


def test_inference_takes_the_moving_statistics_of_the_source() -> None:
    layer = SourceBatchNormalization(2, momentum=0.9, dtype="float64")
    batches = [data((10, 20), seed) for seed in range(3)] + [data((10, 0), 3)]
    for x, source in batches:
        layer(x, source=source, training=True)
    # Weighted moments over all cells seen, the past decaying by 0.9 per batch of the source.
    for s in range(2):
        own = [x[source == s] for x, source in batches if (source == s).any()]
        weight = np.concatenate(
            [np.full(len(x), 0.9 ** (len(own) - 1 - i)) for i, x in enumerate(own)]
        )
        cells = np.concatenate(own)
        mean = np.average(cells, axis=0, weights=weight)
        variance = np.average((cells - mean) ** 2, axis=0, weights=weight)
        query = np.ones((1, F))
        np.testing.assert_allclose(
            layer(query, source=np.array([s], np.int32)),
            (query - mean) / np.sqrt(variance + 1e-3),
            atol=1e-10,
        )


def test_a_source_never_seen_takes_the_pooled_statistics() -> None:
    layer = SourceBatchNormalization(3, dtype="float64")
    x, source = data((10, 30))  # source 2 exists but has no cell
    layer(x, source=source, training=True)
    query = np.full((2, F), 1.5)
    want = (query - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)
    np.testing.assert_allclose(layer(query, source=np.array([-1, 2], np.int32)), want, atol=1e-10)


def test_too_few_cells_of_a_source_take_its_moving_statistics_or_all_cells() -> None:
    layer = SourceBatchNormalization(2, min_cells=4, dtype="float64")
    x, source = data((12, 2))
    out = np.asarray(layer(x, source=source, training=True))
    few = source == 1
    np.testing.assert_allclose(
        out[few], ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3))[few], atol=1e-10
    )
    # Two cells seen do not suffice, nor do 3.98 (the past decays); 5.94 do.
    pooled = ((x + 1 - (x + 1).mean(0)) / np.sqrt(x.var(0) + 1e-3))[few]
    np.testing.assert_allclose(layer(x + 1, source=source, training=True)[few], pooled, atol=1e-10)
    np.testing.assert_allclose(
        layer(x, source=source)[few],
        (x[few] - pool_moments(layer.moving_moments)[0])
        / np.sqrt(pool_moments(layer.moving_moments)[1] + 1e-3),
        atol=1e-10,
    )
    layer(x + 2, source=source, training=True)
    _, mean, variance = (part.numpy() for part in layer.moving_moments)
    out = np.asarray(layer(x + 3, source=source, training=True))
    np.testing.assert_allclose(
        out[few], (x[few] + 3 - mean[1]) / np.sqrt(variance[1] + 1e-3), atol=1e-10
    )


def test_moments_merge_and_pool_to_those_of_all_cells() -> None:
    x, source = data((7, 13))
    first = moments_by_source(tf.constant(x[:8]), source[:8], 2)
    second = moments_by_source(tf.constant(x[8:]), source[8:], 2)
    for got, want in zip(
        merge_moments(first, second), moments_by_source(tf.constant(x), source, 2), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-12)
    mean, variance = pool_moments(merge_moments(first, second))
    np.testing.assert_allclose(mean, x.mean(0), atol=1e-12)
    np.testing.assert_allclose(variance, x.var(0), atol=1e-12)


def test_half_precision_keeps_wide_statistics() -> None:
    layer = SourceBatchNormalization(1, dtype="mixed_bfloat16")
    x = (np.random.default_rng(0).normal(100, 1, (64, F))).astype("float32")
    out = layer(x, training=True)
    assert out.dtype == tf.bfloat16
    assert layer.moving_mean.dtype in ("float32", tf.float32)


def test_works_in_a_functional_model_and_survives_saving(tmp_path) -> None:
    x, source = data((32, 32))
    x = x.astype("float32")
    inputs, code = keras.Input([F]), keras.Input([], dtype="int32")
    hidden = SourceBatchNormalization(2)(inputs, source=code)
    model = keras.Model([inputs, code], keras.layers.Dense(1)(hidden))
    model.compile("adam", "mse", jit_compile=True)
    model.fit([x, source], x[:, :1], epochs=2, batch_size=16, verbose=0)
    path = tmp_path / "m.keras"
    model.save(path)
    np.testing.assert_array_equal(
        keras.models.load_model(path).predict([x, source], verbose=0),
        model.predict([x, source], verbose=0),
    )


@pytest.mark.parametrize("bad", [{"n_sources": 0}, {"momentum": 1.0}, {"min_cells": 1}])
def test_arguments_are_checked(bad: dict) -> None:
    with pytest.raises(ValueError, match="SourceBatchNormalization needs"):
        SourceBatchNormalization(**bad)


def aligned_layer() -> tuple[SourceBatchNormalization, np.ndarray, np.ndarray]:
    """A layer of two sources with factors and offsets, and a scale and an offset of all."""
    rng = np.random.default_rng(5)
    layer = SourceBatchNormalization(2, dtype="float64", aligned=True)
    layer.build((None, F))
    factor, offset = rng.uniform(0.5, 2, (2, F)), rng.normal(size=(2, F))
    layer.align(factor, offset)
    layer.gamma.assign(rng.uniform(0.5, 2, F))
    layer.beta.assign(rng.normal(size=F))
    return layer, factor, offset


@pytest.mark.parametrize("training", [True, False])
def test_sources_have_factors_and_offsets_behind_their_statistics(training: bool) -> None:
    layer, factor, offset = aligned_layer()
    x, source = data((30, 40))
    layer(x, source=source, training=True)
    out = layer(x, source=source, training=training)
    gamma, beta = layer.gamma.numpy(), layer.beta.numpy()
    want = (by_source(x, source, 1e-3) * factor[source] + offset[source]) * gamma + beta
    np.testing.assert_allclose(out, want, atol=1e-6)


def test_who_has_no_source_here_is_not_aligned() -> None:
    layer, _, offset = aligned_layer()
    plain = SourceBatchNormalization(2, dtype="float64")
    x, source = data((30, 40))
    for of in (layer, plain):
        of(x, source=source, training=True)
    plain.gamma.assign(layer.gamma)
    plain.beta.assign(layer.beta)
    nobody = np.full(70, -1, np.int32)
    np.testing.assert_allclose(layer(x, source=nobody), plain(x, source=nobody), atol=1e-12)
    # What was not measured stands at the mean of its source.
    measured = np.array([True, False, True])
    out = layer(x, source=source, measured=measured).numpy()
    want = layer.gamma.numpy() * offset[source] + layer.beta.numpy()
    np.testing.assert_allclose(out[:, 1], want[:, 1], atol=1e-12)


def test_alignment_goes_with_the_source_to_another_layer() -> None:
    layer, factor, offset = aligned_layer()
    x, source = data((30, 40))
    layer(x, source=source, training=True)
    other = SourceBatchNormalization(3, dtype="float64", aligned=True)
    other.build((None, F))
    other.take_sources(layer, [1, -1, 0])
    np.testing.assert_allclose(other.source_factor, [factor[1], np.ones(F), factor[0]], rtol=1e-6)
    np.testing.assert_allclose(other.source_offset, [offset[1], np.zeros(F), offset[0]], rtol=1e-6)
    found, want = other.moving_mean.numpy()[[0, 2]], layer.moving_mean.numpy()[[1, 0]]
    np.testing.assert_array_equal(found, want)


def test_only_an_aligned_layer_is_aligned() -> None:
    layer = SourceBatchNormalization(2)
    layer.build((None, F))
    with pytest.raises(ValueError, match="aligned=True"):
        layer.align(np.ones((2, F)), np.zeros((2, F)))
    again = SourceBatchNormalization.from_config(aligned_layer()[0].get_config())
    assert again.aligned and not SourceBatchNormalization(2).get_config()["aligned"]


def test_alignment_stands_behind_the_statistics_of_the_source_alone() -> None:
    layer, _, _ = aligned_layer()
    plain = SourceBatchNormalization(2, dtype="float64")
    x, source = data((30, 3))  # fewer than `min_cells` of the second
    outs = []
    plain.build((None, F))
    plain.gamma.assign(layer.gamma)
    plain.beta.assign(layer.beta)
    for of in (layer, plain):
        outs.append((of(x, source=source, training=True), of(x, source=source)))
    few = source == 1
    for aligned, other in zip(*outs, strict=True):
        np.testing.assert_allclose(aligned.numpy()[few], other.numpy()[few], atol=1e-12)
        assert not np.allclose(aligned.numpy()[~few], other.numpy()[~few], atol=0.01)


def test_no_cell_at_all_is_none_afterwards() -> None:
    layer, _, _ = aligned_layer()
    nothing, nobody = np.zeros((0, F)), np.zeros(0, np.int32)
    for training in (True, False):
        assert layer(nothing, source=nobody, training=training).shape == (0, F)
