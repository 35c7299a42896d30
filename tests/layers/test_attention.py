"""GeneAttention against the paper's equations over all genes, zeros included."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.layers import GeneAttention, scatter_to_dense

pytestmark = pytest.mark.stack

G, D, A, B = 40, 6, 4, 5


def cells(seed: int = 0, padding: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dense values [B, G] and the same as padded nonzeros; one cell without any gene."""
    rng = np.random.default_rng(seed)
    dense = rng.gamma(1.0, 1.0, (B, G)) * (rng.random((B, G)) < 0.3)
    dense[2] = 0
    k = int((dense > 0).sum(1).max()) + padding
    genes, values = np.zeros((B, k), np.int32), np.zeros((B, k))
    for i, row in enumerate(dense):
        nonzero = np.flatnonzero(row)
        genes[i, : len(nonzero)], values[i, : len(nonzero)] = nonzero, row[nonzero]
    return dense, genes, values


def layer(seed: int = 1) -> GeneAttention:
    attention = GeneAttention(G, D, A, dtype="float64")
    attention.build((None, None))
    rng = np.random.default_rng(seed)
    attention.set_weights([rng.normal(0, 0.7, w.shape) for w in attention.get_weights()])
    return attention


def reference(weights: list[np.ndarray], dense: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equations 1 to 5 for every cell and every gene, written out in NumPy."""
    e, w, b, u = weights
    out, alphas = [], []
    for values in dense:
        h = values[:, None] * e
        score = np.tanh(h @ w + b) @ u[:, 0]
        alpha = np.exp(score) / np.exp(score).sum()
        out.append(alpha @ h)
        alphas.append(alpha)
    return np.array(out), np.array(alphas)


def test_forward_is_the_dense_softmax_over_all_genes() -> None:
    dense, genes, values = cells()
    attention = layer()
    expected, alpha = reference(attention.get_weights(), dense)
    np.testing.assert_allclose(attention(genes, values), expected, rtol=0, atol=1e-12)
    weights = np.asarray(attention.attention_weights(genes, values))
    for i in range(B):
        listed = values[i] > 0
        np.testing.assert_allclose(weights[i, listed], alpha[i, genes[i, listed]], atol=1e-12)


def test_gradients_are_those_of_the_dense_form() -> None:
    dense, genes, values = cells()
    attention = layer()
    target = tf.constant(np.random.default_rng(2).normal(size=(B, D)))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(target * tf.sin(attention(genes, values)))
    sparse = [tf.convert_to_tensor(g) for g in tape.gradient(loss, attention.trainable_weights)]

    variables = [tf.Variable(w) for w in attention.get_weights()]
    with tf.GradientTape() as tape:
        e, w, b, u = variables
        h = dense[..., None] * e
        score = tf.tanh(h @ w + b) @ u
        cell = tf.reduce_sum(tf.nn.softmax(score, axis=1) * h, axis=1)
        loss = tf.reduce_sum(target * tf.sin(cell))
    for name, got, want in zip(
        attention.trainable_weights, sparse, tape.gradient(loss, variables), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10, err_msg=str(name))


@pytest.mark.parametrize("jit", [False, True])
def test_padding_changes_nothing(jit: bool) -> None:
    attention = layer()
    call = tf.function(lambda g, v: attention(g, v), jit_compile=jit)
    results = []
    for padding in (0, 3, 2 * G):  # also more places than there are genes
        _, genes, values = cells(padding=padding)
        results.append(np.asarray(call(genes, values)))
    np.testing.assert_allclose(results[1], results[0], atol=1e-12)
    np.testing.assert_allclose(results[2], results[0], atol=1e-12)


@pytest.mark.parametrize("jit", [False, True])
def test_packed_batches_give_the_same(jit: bool) -> None:
    dense, genes, values = cells(padding=0)
    attention = layer()
    listed = values > 0
    width = int(np.ceil(listed.sum() / B)) + 2
    packed = np.zeros((3, B * width))
    for target, content in zip(
        packed, (genes, values, np.repeat(np.arange(B), genes.shape[1])), strict=True
    ):
        target[: listed.sum()] = content.ravel()[listed.ravel()]
    g, v, rows = (part.reshape(B, width) for part in packed)
    g, rows = g.astype(np.int32), rows.astype(np.int32)
    call = tf.function(lambda *x: attention(*x), jit_compile=jit)
    np.testing.assert_allclose(call(g, v, rows), attention(genes, values), atol=1e-12)
    np.testing.assert_array_equal(scatter_to_dense(g, tf.constant(v), G, rows), dense)
    alpha = np.asarray(attention.attention_weights(g, v, rows))
    want = np.asarray(attention.attention_weights(genes, values))
    np.testing.assert_allclose(alpha.ravel()[: listed.sum()], want[listed], atol=1e-12)


def test_large_scores_do_not_overflow() -> None:
    _, genes, values = cells()
    attention = GeneAttention(G, D)
    attention.build((None, None))
    attention.set_weights([w + 200 for w in attention.get_weights()])
    assert np.isfinite(np.asarray(attention(genes, values.astype("float32")))).all()


def test_half_precision_stays_near() -> None:
    dense, genes, values = cells()
    exact = layer()
    half = GeneAttention(G, D, A, dtype="mixed_bfloat16")
    half.build((None, None))
    half.set_weights(exact.get_weights())
    out = half(genes, values.astype("float32"))
    assert out.dtype == tf.bfloat16
    expected, _ = reference(exact.get_weights(), dense)
    assert np.abs(np.asarray(tf.cast(out, tf.float32)) - expected).max() < 0.03


def test_trains_in_a_keras_model_and_survives_saving(tmp_path) -> None:
    tf.random.set_seed(0)
    rng = np.random.default_rng(0)
    genes = np.tile(np.arange(8, dtype=np.int32), (64, 1))
    values = rng.random((64, 8)).astype("float32")
    y = values[:, :1] - values[:, 1:2]
    g, v = keras.Input([8], dtype="int32"), keras.Input([8])
    model = keras.Model([g, v], keras.layers.Dense(1)(GeneAttention(G, D)(g, v)))
    model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=True)
    history = model.fit([genes, values], y, epochs=30, verbose=0).history["loss"]
    assert history[-1] < 0.3 * history[0]
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(
        model.predict([genes, values], verbose=0), again.predict([genes, values], verbose=0)
    )


def test_scatter_sums_padding_into_gene_zero() -> None:
    dense, genes, values = cells()
    np.testing.assert_array_equal(scatter_to_dense(genes, tf.constant(values), G), dense)


@pytest.mark.parametrize(("n_genes", "units"), [(0, 4), (4, 0)])
def test_sizes_must_be_positive(n_genes: int, units: int) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        GeneAttention(n_genes, units)


def test_unmeasured_genes_take_their_value_in_every_cell() -> None:
    dense, genes, values = cells()
    gone = np.arange(0, G, 3)
    values[np.isin(genes, gone)] = 0
    unmeasured = np.zeros(G)
    unmeasured[gone] = np.random.default_rng(5).gamma(1.0, 1.0, len(gone))
    filled = np.where(unmeasured > 0, unmeasured, dense)
    attention = layer()
    expected, alpha = reference(attention.get_weights(), filled)
    got = attention(genes, values, unmeasured=unmeasured)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    weights = np.asarray(attention.attention_weights(genes, values, unmeasured=unmeasured))
    listed = values > 0
    rows = np.nonzero(listed)[0]
    np.testing.assert_allclose(weights[listed], alpha[rows, genes[listed]], rtol=0, atol=1e-12)
