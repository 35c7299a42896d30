"""CLEAR: equation 2 and 3 by hand, a queue that lasts, and what it cannot be trained with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf._keras import KERAS_MAJOR, keras
from concerto_tf.errors import InputError
from concerto_tf.models import CLEAR, load_model, save_model

pytestmark = pytest.mark.stack

NAMES = [f"G{i}" for i in range(30)]


def make(**arguments: Any) -> CLEAR:
    small = {
        "backbone": (8, 4),
        "head": None,
        "batch_size": 16,
        "queue": 64,
        "components": 0,
        "temperature": 0.2,
    }
    return CLEAR(NAMES, **{"sources": ("a", "b"), **small, **arguments})


@pytest.fixture(scope="module")
def data(make_batch: Callable) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(make_batch(64)).batch(16, drop_remainder=True)


def equation_2(q: list[np.ndarray], k: list[np.ndarray], queue: np.ndarray, t: float) -> float:
    """Straight from the paper: every view against its other view and everything else."""
    q, k = ([z / np.linalg.norm(z, axis=1, keepdims=True) for z in views] for views in (q, k))
    queue = queue / np.linalg.norm(queue, axis=1, keepdims=True)
    terms = []
    for view in (0, 1):
        for i in range(len(q[0])):
            positive = q[view][i] @ k[1 - view][i] / t
            others = [k[1 - view][j] for j in range(len(q[0]))]
            others += [k[view][j] for j in range(len(q[0])) if j != i]
            against = [q[view][i] @ other / t for other in [*others, *queue]]
            terms.append(np.log(np.exp(against).sum()) - positive)
    return float(np.mean(terms))


@pytest.mark.parametrize("head", [None, 3])
def test_steps_are_equations_2_and_3(head: int | None, make_batch: Callable) -> None:
    # Without anything random, so that the views are known: twice the cell itself.
    model = make(mask=0, noise=0, swap=0, crossover=0, crossover_many=0, head=head, momentum=0.75)
    # Otherwise queries and keys are the same at first.
    model.backbone.set_weights([w + 0.1 for w in model.backbone.get_weights()])
    model.compile("sgd", 0.1, jit_compile=False)
    queue = np.zeros((0, head or 4))
    for seed in range(6):  # longer than the queue of two minibatches of both views
        batch = {key: tf.constant(x) for key, x in make_batch(16, seed=seed).items()}
        x = model.prepare(model.dense(batch), batch, training=True)
        q, k = (z.numpy() for z in (model.project(model.encode(x)), model.keys(x)))
        slow = [w.numpy() for w in model.key_backbone.weights]
        wanted = equation_2([q, q], [k, k], queue[-64:], 0.2)
        loss, *_ = model.batch_loss(batch)
        np.testing.assert_allclose(tf.reduce_mean(loss), wanted, rtol=1e-5)
        queue = np.concatenate([queue, k, k])
        fast = [w.numpy() + 0.01 for w in model.backbone.weights]
        model.backbone.set_weights(fast)
        model.after_step()
        for now, old, query in zip(model.key_backbone.weights, slow, fast, strict=True):
            np.testing.assert_allclose(now.numpy(), 0.75 * old + 0.25 * query, rtol=1e-5, atol=1e-7)


def test_only_queries_get_gradients_and_state_survives(
    data: tf.data.Dataset, tmp_path: Path
) -> None:
    model = make()
    trained = {id(w) for w in model.trainable_variables}
    assert not trained & {id(w) for w in (*model.key_backbone.weights, *model.queue.weights)}
    model.compile(learning_rate=0.01, jit_compile=False)
    model.fit(data, epochs=2, verbose=0)
    assert int(tf.convert_to_tensor(model.queue.filled)) == 64
    for key, query in zip(model.key_backbone.weights, model.backbone.weights, strict=True):
        distance = np.abs(key.numpy() - query.numpy()).max()
        assert 0 < distance < 0.2, "keys follow, and slowly"
    model.save(tmp_path / "whole.keras")
    again = keras.models.load_model(tmp_path / "whole.keras")
    losses = [m.fit(data, epochs=2, verbose=0).history["loss"] for m in (model, again)]
    assert losses[0] == losses[1]
    save_model(model, tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.queue.embeddings, model.queue.embeddings)
    before = model.get_weights()
    model.evaluate(data, verbose=0)
    model.calibrate(data)
    layers = {id(w) for w in model.input_norm.weights} if model.input_norm else set()
    layers |= {id(w) for metric in model.metrics for w in metric.variables}  # Keras 2: weights too
    for weight, old in zip(model.weights, before, strict=True):
        if id(weight) not in layers:
            np.testing.assert_array_equal(weight.numpy(), old)


def test_replicas_are_in_step(strategy: tf.distribute.Strategy, data: tf.data.Dataset) -> None:
    with strategy.scope():
        model = make(head=3)
        model.compile(learning_rate=0.01)
    model.fit(data, epochs=2, verbose=0)
    assert int(tf.convert_to_tensor(model.queue.filled)) == 64
    slow = [*model.key_backbone.weights, *model.key_head.weights, model.queue.embeddings]
    for weight in slow:
        variable = weight.value if KERAS_MAJOR >= 3 else weight
        first, second = (part.numpy() for part in strategy.experimental_local_results(variable))
        np.testing.assert_array_equal(first, second)


def test_each_augmentation_can_be_left_out(make_batch: Callable) -> None:
    batch, steps = make_batch(16), ("mask", "noise", "swap", "crossover", "crossover_many")
    none = dict.fromkeys(steps, 0.0)
    model = make(**none)
    x = model.dense(batch)
    np.testing.assert_array_equal(model.augmented(x), x)
    for step in steps:
        view = make(**{**none, step: 0.5}, probability=1.0).augmented(x)
        assert np.abs(view - x).max() > 0, step
        assert CLEAR.from_config(make(**{step: 0.5}).get_config()).get_config()[step] == 0.5


def test_queue_follows_the_minibatch() -> None:
    model = make(queue=None, batch_size=256)
    assert model.queue.size == 1024
    model.backbone.steps[0].kernel.assign_add(tf.ones([30, 8]))
    other = model.for_batches(90)
    assert other.queue.size == 5 * 2 * 90
    np.testing.assert_array_equal(other.backbone.steps[0].kernel, model.backbone.steps[0].kernel)
    assert other.for_batches(90) is other and make(queue=64).for_batches(32).queue.size == 64
    assert make(queue=None, batch_size=4_000).queue.size == 8_000
    with pytest.raises(InputError, match="queue is 64, .* multiple of the 20 views .* take 60"):
        make(queue=64).for_batches(10)


def test_minibatch_that_does_not_fit_the_queue(make_batch: Callable) -> None:
    model = make(queue=64)
    model.compile(jit_compile=False)
    cells = tf.data.Dataset.from_tensor_slices(make_batch(30)).batch(10, drop_remainder=True)
    with pytest.raises(InputError, match="not a multiple of the 20"):
        model.fit(cells, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": 1.0}, r"\[0, 1\)"),
        ({"noise": 1.1}, r"\[0, 1\]"),
        ({"swap": -0.1}, r"\[0, 1\]"),
        ({"crossover": 2}, r"\[0, 1\]"),
        ({"crossover_many": -1}, r"\[0, 1\]"),
        ({"probability": 1.5}, r"\[0, 1\]"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"temperature": -1}, "temperature must be positive"),
        ({"queue": 0}, "queue 1 or more"),
        ({"batch_size": 1}, "batch_size must be 2 or more"),
    ],
)
def test_unsuitable_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**arguments)


def test_the_authors_embeddings_are_of_unit_length_and_not_negative(make_batch: Callable) -> None:
    options = {**CLEAR.presets["authors"].options, "backbone": (12, 8)}
    model = CLEAR(NAMES, batch_size=32, **options)
    z = model(make_batch(32)).numpy()
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    assert z.min() == 0
