"""Layers that begin with given directions."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.layers import (
    CellTransformer,
    GeneAttention,
    SourceBatchNormalization,
)
from concerto_tf.layers.directions import take_directions, with_negatives
from concerto_tf.models.dense.mlp import MLP

RNG = np.random.default_rng(0)
DIRECTIONS = RNG.normal(size=(12, 3)).astype(np.float32)
CELLS = RNG.poisson(1.0, (5, 12)).astype(np.float32)


def test_the_rest_of_a_matrix_is_small_and_as_it_was() -> None:
    before = RNG.normal(size=(12, 5)).astype(np.float32)
    kernel = tf.Variable(before)
    take_directions(kernel, DIRECTIONS[:8])
    np.testing.assert_array_equal(kernel[:8, :3], DIRECTIONS[:8])
    np.testing.assert_allclose(kernel[8:], before[8:] * 0.02)
    np.testing.assert_allclose(kernel[:, 3:], before[:, 3:] * 0.02)


@pytest.mark.parametrize("widths", [(8,), (8, 8), (10, 6, 7)])
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("scale_inputs", [True, False])
def test_an_mlp_passes_directions_through_its_relus(
    widths: tuple[int, ...], paired: bool, scale_inputs: bool
) -> None:
    mlp = MLP(widths, scale_inputs=scale_inputs)
    mlp.build((None, 12))
    k = min(3, mlp.room(paired))
    held = mlp.take_directions(DIRECTIONS[:, :k], paired)
    want = CELLS @ DIRECTIONS[:, :k]
    want = with_negatives(want) if paired else want
    assert held == want.shape[1] <= widths[-1]
    np.testing.assert_allclose(mlp(CELLS)[:, :held], want, atol=0.15)


def test_an_mlp_has_room_for_as_many_as_its_narrowest_layer() -> None:
    assert MLP([10, 7]).room(paired=False) == 5
    assert MLP([10, 7]).room(paired=True) == 3
    assert MLP([7]).room(paired=False) == 7


def test_attention_and_tokens_take_directions() -> None:
    genes = np.tile(np.arange(12, dtype=np.int32), (5, 1))
    uniform = GeneAttention(12, 6, context_initializer="zeros")
    uniform.build()
    uniform.take_directions(DIRECTIONS)
    found = uniform(genes, CELLS)[:, :3]
    np.testing.assert_allclose(found, CELLS @ DIRECTIONS / np.sqrt(12), rtol=1e-4, atol=1e-5)
    encoder = CellTransformer(depth=0, width=6)
    encoder.build((None, 12))
    encoder.take_directions(DIRECTIONS)
    np.testing.assert_allclose(encoder(CELLS)[:, :3], CELLS @ DIRECTIONS, rtol=1e-4, atol=1e-5)


def test_a_normalization_takes_scales() -> None:
    layer = SourceBatchNormalization()
    layer.build((None, 4))
    layer.take_scales(np.array([3.0, 2.0]))
    np.testing.assert_allclose(layer.gamma, [3, 2, 0.01, 0.01])
