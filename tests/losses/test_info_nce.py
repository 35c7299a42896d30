from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.losses import nt_xent
from concerto_tf.losses.info_nce import InfoNCE, info_nce


def unit(z: np.ndarray) -> np.ndarray:
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def equation_2(
    queries: np.ndarray, keys: np.ndarray, earlier: np.ndarray, temperature: float
) -> float:
    """Equations 1 and 2, index by index: cell i has the views 2i and 2i + 1 (from 0).

    ``queries`` and ``keys`` [2N, d] are those of the minibatch, ``earlier`` the rest of the queue.
    """
    queue = np.concatenate([keys, earlier])

    def loss(i: int, j: int) -> float:
        others = sum(
            np.exp(queries[i] @ queue[k] / temperature) for k in range(len(queue)) if k != i
        )
        return -np.log(np.exp(queries[i] @ queue[j] / temperature) / others)

    n = len(queries) // 2
    return sum(loss(2 * i, 2 * i + 1) + loss(2 * i + 1, 2 * i) for i in range(n)) / (2 * n)


def embeddings(n: int = 5, earlier: int = 12, d: int = 4) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(2 * n, d)), rng.normal(size=(2 * n, d)), rng.normal(size=(earlier, d))


def both_views(queries: tf.Tensor, keys: tf.Tensor, queue: tf.Tensor, *args, **kw) -> tf.Tensor:
    a = info_nce(queries[0::2], keys[1::2], queue, *args, own_key=keys[0::2], **kw)
    b = info_nce(queries[1::2], keys[0::2], queue, *args, own_key=keys[1::2], **kw)
    return tf.reduce_mean((a + b) / 2)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_is_the_papers_equation(temperature: float) -> None:
    queries, keys, earlier = embeddings()
    got = both_views(*map(tf.constant, (queries, keys, earlier)), temperature)
    want = equation_2(unit(queries), unit(keys), unit(earlier), temperature)
    assert float(got) == pytest.approx(want, abs=1e-12)


def test_is_the_equation_as_printed_without_normalization() -> None:
    queries, keys, earlier = embeddings()
    got = both_views(*map(tf.constant, (queries, keys, earlier)), 0.7, normalize=False)
    assert float(got) == pytest.approx(equation_2(queries, keys, earlier, 0.7), abs=1e-10)


def test_gradient_is_that_of_the_equation_and_none_flows_into_the_queue(
    numeric_gradient: Callable,
) -> None:
    queries, keys, earlier = embeddings(3, 4, 3)
    x, queue = tf.constant(queries), tf.constant(earlier)
    with tf.GradientTape() as tape:
        tape.watch([x, queue])
        loss = both_views(x, tf.constant(keys), queue, 0.3)
    got, none = tape.gradient(loss, [x, queue])
    assert none is None
    want = numeric_gradient(lambda z: equation_2(unit(z), unit(keys), unit(earlier), 0.3), queries)
    np.testing.assert_allclose(got, want, atol=1e-7)


def test_rows_of_the_queue_that_are_not_filled_do_not_count() -> None:
    queries, keys, earlier = (tf.constant(x) for x in embeddings())
    for filled in (0, 7, 12):
        got = both_views(queries, keys, earlier, 0.2, filled=tf.constant(filled))
        want = both_views(queries, keys, earlier[:filled] if filled else None, 0.2)
        assert float(got) == pytest.approx(float(want), abs=1e-12)


def test_with_one_encoder_and_no_queue_it_is_nt_xent() -> None:
    a, b = (tf.constant(x) for x in embeddings()[:2])
    got = (info_nce(a, b, None, 0.5, own_key=a) + info_nce(b, a, None, 0.5, own_key=b)) / 2
    np.testing.assert_allclose(got, nt_xent(a, b, 0.5), atol=1e-12)


def test_more_negatives_are_a_harder_question() -> None:
    query, key, earlier = (tf.constant(x) for x in embeddings())
    alone, asked = info_nce(query, key), info_nce(query, key, earlier)
    assert (asked.numpy() > alone.numpy()).all()
    assert float(tf.reduce_min(info_nce(query, query))) > 0


def test_half_precision_is_compared_in_float32() -> None:
    queries, keys, earlier = embeddings(32, 64, 16)
    half = both_views(*(tf.cast(x, tf.bfloat16) for x in (queries, keys, earlier)), 0.2)
    assert half.dtype == tf.float32
    want = equation_2(unit(queries), unit(keys), unit(earlier), 0.2)
    assert float(half) == pytest.approx(want, rel=0.02)


def test_keras_loss_is_the_function_within_the_minibatch() -> None:
    query, key, _ = embeddings()
    for normalize in (True, False):
        loss = InfoNCE(0.4, normalize=normalize)
        want = tf.reduce_mean(info_nce(query, key, temperature=0.4, normalize=normalize))
        assert float(loss(key, query)) == pytest.approx(float(want), rel=1e-5)
        again = InfoNCE.from_config(loss.get_config())
        assert float(again(key, query)) == float(loss(key, query))
    with pytest.raises(ValueError, match="temperature must be positive"):
        InfoNCE(0.0)


def test_works_as_the_loss_of_somebody_elses_model() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype("float32")
    model = keras.Sequential([keras.Input([8]), keras.layers.Dense(8)])
    model.compile(keras.optimizers.Adam(0.01), InfoNCE(0.5))
    losses = model.fit(x, x @ rng.normal(size=(8, 8)).astype("float32"), epochs=20, verbose=0)
    assert losses.history["loss"][-1] < losses.history["loss"][0] - 0.3
