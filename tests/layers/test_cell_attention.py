from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.layers import CellTransformer, CellTransformerLayer

pytestmark = pytest.mark.stack

B, D, HEADS, KEY, UNITS = 7, 6, 2, 3, 5


def make(dtype: str = "float64", **options: bool) -> CellTransformerLayer:
    layer = CellTransformerLayer(HEADS, KEY, UNITS, dtype=dtype, **options)
    layer.build((None, D))
    rng = np.random.default_rng(0)
    for weight in layer.weights:  # other than ones and zeros
        weight.assign(rng.normal(size=tuple(weight.shape)))
    return layer


def cells(n: int = B, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, D))


def normal(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-3) * gamma + beta


def written_out(layer: CellTransformerLayer, x: np.ndarray, context: np.ndarray | None = None):
    """The paper's equations, cell by cell and head by head."""
    query, key, value, output, hidden, back, g1, b1, g2, b2 = (
        np.array(tf.convert_to_tensor(weight)) for weight in layer.weights
    )

    def attend(x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        out = np.zeros((len(x), HEADS * KEY))
        for i, cell in enumerate(x):
            seen = x if context is None else np.vstack([context, cell])
            for h in range(HEADS):
                at = slice(h * KEY, (h + 1) * KEY)
                score = np.exp((cell @ query[:, at]) @ (seen @ key[:, at]).T / np.sqrt(KEY))
                out[i, at] = score / score.sum() @ (seen @ value[:, at])
        return out @ output

    def feed(x: np.ndarray) -> np.ndarray:
        return np.maximum(x @ hidden, 0) @ back

    if layer.normalize_first:
        x = x + attend(normal(x, g1, b1), None if context is None else normal(context, g1, b1))
        return x + feed(normal(x, g2, b2))
    x = normal(x + attend(x, context), g1, b1)
    return normal(x + feed(x), g2, b2)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("with_context", [False, True])
def test_is_equations_3_to_7(first: bool, with_context: bool) -> None:
    layer, x = make(normalize_first=first), cells()
    context = cells(4, seed=2) if with_context else None
    got = layer(tf.constant(x), context=None if context is None else tf.constant(context))
    np.testing.assert_allclose(got, written_out(layer, x, context), atol=1e-10)


def test_order_and_company() -> None:
    layer, x, context = make(), cells(), tf.constant(cells(4, seed=2))
    order = np.random.default_rng(0).permutation(B)
    np.testing.assert_allclose(layer(x[order]), layer(x).numpy()[order], atol=1e-10)
    assert not np.allclose(layer(x[:3]), layer(x)[:3], atol=1e-3)  # company matters
    alone = np.concatenate([layer(x[i : i + 1], context=context) for i in range(B)])
    np.testing.assert_allclose(layer(x, context=context), alone, atol=1e-10)


def test_two_replicas_see_all_cells(strategy: tf.distribute.Strategy) -> None:
    x, weight = cells(8), np.random.default_rng(3).normal(size=(8, D))
    with strategy.scope():
        layer = make()
    one = make()

    def gradient(layer: CellTransformerLayer, x: tf.Tensor, weight: tf.Tensor):
        with tf.GradientTape() as tape:
            y = layer(x)
            loss = tf.reduce_sum(y * weight)
        return y, tape.gradient(loss, layer.trainable_variables)

    @tf.function
    def everywhere():
        parts = [
            strategy.experimental_distribute_values_from_function(
                lambda context, of=of: tf.constant(of[context.replica_id_in_sync_group * 4 :][:4])
            )
            for of in (x, weight)
        ]
        return strategy.run(lambda x, w: gradient(layer, x, w), parts)

    y, gradients = tf.nest.map_structure(strategy.experimental_local_results, everywhere())
    want, of_all = gradient(one, tf.constant(x), tf.constant(weight))
    np.testing.assert_allclose(np.concatenate(y), want, atol=1e-10)
    for parts, whole in zip(gradients, of_all, strict=True):
        np.testing.assert_allclose(parts[0] + parts[1], whole, atol=1e-9)


def test_starts_as_the_identity() -> None:
    layer = CellTransformerLayer(HEADS, KEY, UNITS, normalize_first=True, identity_start=True)
    x = cells().astype("f4")
    np.testing.assert_array_equal(layer(x), x)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x) * cells(seed=4).astype("f4"))
    moved = [np.abs(g).max() > 0 for g in tape.gradient(loss, [layer._output, layer._back])]
    assert moved == [True, True]


def test_seeds_and_shares_nothing_between_weights() -> None:
    def kernels(seed: int) -> list[np.ndarray]:
        layer = CellTransformerLayer(HEADS, KEY, UNITS, seed=seed)
        layer.build((None, D))
        return [np.array(tf.convert_to_tensor(w)) for w in layer.weights[:3]]

    one, again, other = kernels(1), kernels(1), kernels(2)
    np.testing.assert_array_equal(one, again)
    for a, b in [(one[0], one[1]), (one[1], one[2]), (one[0], other[0]), (one[1], other[0])]:
        assert not np.allclose(a, b)


def test_half_precision_xla_and_saving(tmp_path) -> None:
    layer, x = make("mixed_bfloat16"), cells().astype("f4")
    assert layer(x).dtype == tf.bfloat16
    exact = make("float32")
    assert np.abs(tf.cast(layer(x), tf.float32) - exact(x)).mean() < 0.1
    compiled = tf.function(exact, jit_compile=True)
    np.testing.assert_allclose(compiled(x), exact(x), atol=1e-4)
    inputs = keras.Input([D])
    model = keras.Model(inputs, exact(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
    assert exact.compute_output_shape((None, D)) == (None, D)


@pytest.mark.parametrize("options", [{"heads": 0}, {"key_dim": 1.5}, {"units": -1}])
def test_bad_arguments(options: dict) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))} must be a whole number"):
        CellTransformerLayer(**options)


def test_encoder_is_a_projection_and_its_layers() -> None:
    encoder = CellTransformer(2, 6, HEADS, KEY, UNITS, dtype="float64")
    x, context = cells(), cells(4, seed=2)
    encoder(tf.constant(x))
    rng = np.random.default_rng(0)
    for weight in encoder.weights:
        weight.assign(rng.normal(size=tuple(weight.shape)))
    tokens = np.array(tf.convert_to_tensor(encoder.projection))
    first, second = encoder.layers
    want = written_out(second, written_out(first, x @ tokens))
    np.testing.assert_allclose(encoder(tf.constant(x)), want, atol=1e-9)
    # The context attends to itself, once.
    seen = context @ tokens
    want = written_out(second, written_out(first, x @ tokens, seen), written_out(first, seen))
    got = encoder(tf.constant(x), context=tf.constant(context))
    np.testing.assert_allclose(got, want, atol=1e-9)


def test_encoder_of_the_input_itself_and_its_configuration() -> None:
    encoder = CellTransformer(1, None, HEADS, KEY, UNITS)
    assert encoder(tf.ones([3, D])).shape == (3, D) == encoder.compute_output_shape((3, D))
    again = CellTransformer.from_config(encoder.get_config())
    again(tf.ones([3, D]))
    for a, b in zip(encoder.weights, again.weights, strict=True):
        np.testing.assert_array_equal(tf.convert_to_tensor(a), tf.convert_to_tensor(b))
    start = CellTransformer(2, 4, HEADS, KEY, UNITS, normalize_first=True, identity_start=True)
    x = cells().astype("f4")
    np.testing.assert_allclose(start(x), x @ np.array(start.projection), atol=1e-6)
    with pytest.raises(InputError, match="width must be a whole number of at least 1, not 0"):
        CellTransformer(width=0)
