from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.layers.queue import EmbeddingQueue
from concerto_tf.losses.info_nce import info_nce

pytestmark = pytest.mark.stack


def minibatch(i: int) -> tf.Tensor:
    return tf.fill([2, 3], float(i))


def held(queue: EmbeddingQueue) -> list[float]:
    return tf.convert_to_tensor(queue.embeddings).numpy()[:, 0].tolist()


@pytest.mark.parametrize("jit", [False, True])
def test_newest_minibatch_replaces_the_oldest(jit: bool) -> None:
    queue = EmbeddingQueue(6)
    queue.build((2, 3))
    call = tf.function(lambda x: queue(x, training=True), jit_compile=jit)
    seen = []
    for i in range(1, 6):
        earlier, filled = call(minibatch(i))
        seen.append((int(filled), earlier[:, 0].numpy().tolist()))
    assert seen == [
        (0, [0, 0, 0, 0, 0, 0]),
        (2, [1, 1, 0, 0, 0, 0]),
        (4, [1, 1, 2, 2, 0, 0]),
        (6, [1, 1, 2, 2, 3, 3]),
        (6, [4, 4, 2, 2, 3, 3]),
    ]
    assert held(queue) == [4, 4, 5, 5, 3, 3]


def test_nothing_enters_at_inference() -> None:
    queue = EmbeddingQueue(4)
    queue(minibatch(1), training=True)
    earlier, filled = queue(minibatch(2))
    assert int(filled) == 2 and held(queue) == earlier[:, 0].numpy().tolist() == [1, 1, 0, 0]


def test_no_gradient_flows_through_the_queue() -> None:
    queue, x = EmbeddingQueue(4), tf.random.stateless_normal([2, 3], [0, 0])
    queue(x[::-1], training=True)
    with tf.GradientTape() as tape:
        tape.watch(x)
        queue.enqueue(x)
        earlier, _ = queue(x)
        loss = tf.reduce_sum(earlier)
    assert tape.gradient(loss, x) is None
    assert not queue.trainable_weights


def test_half_precision_embeddings_are_kept_in_float32() -> None:
    queue = EmbeddingQueue(4, dtype="mixed_bfloat16")
    earlier, filled = queue(tf.cast(minibatch(1), tf.bfloat16), training=True)
    assert earlier.dtype == tf.float32 and filled.dtype == tf.int32
    assert held(queue) == [1, 1, 0, 0]


class Queued(keras.layers.Layer):
    """Somebody's layer with a queue."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.queue = EmbeddingQueue(12)

    def build(self, input_shape) -> None:
        self.queue.build(input_shape)
        super().build(input_shape)

    def call(self, x, training=None):
        earlier, filled = self.queue(x, training=training)
        self.add_loss(tf.reduce_mean(info_nce(x, x[:, ::-1], earlier, filled=filled)))
        return x


def test_survives_saving(tmp_path: Path) -> None:
    inputs = keras.Input([3], batch_size=4)
    model = keras.Model(inputs, Queued(name="queued")(keras.layers.Dense(3)(inputs)))
    model.compile("adam", jit_compile=True)
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    model.fit(x, epochs=1, batch_size=4, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={"Queued": Queued})
    old, new = model.get_layer("queued").queue, loaded.get_layer("queued").queue
    assert held(new) == held(old) != [0] * 12
    for name in ("pointer", "filled"):
        assert [int(getattr(queue, name)) for queue in (old, new)] == [8, 8]


def test_size_must_be_a_multiple_of_the_batch() -> None:
    with pytest.raises(InputError, match="5 embeddings, which is not a multiple of the 2 .*take 4"):
        EmbeddingQueue(5)(minibatch(0), training=True)
    with pytest.raises(InputError, match="not a multiple of the 2 of a minibatch; take 2"):
        EmbeddingQueue(1)(minibatch(0), training=True)
    with pytest.raises(InputError, match="size must be a whole number of at least 1"):
        EmbeddingQueue(0)


def test_minibatches_must_be_of_a_fixed_size() -> None:
    queue = EmbeddingQueue(4)
    queue.build((None, 3))
    signature = [tf.TensorSpec([None, 3])]
    with pytest.raises(InputError, match="drop_remainder=True"):
        tf.function(queue.enqueue, signature, autograph=False)(minibatch(0))
