"""Callbacks of a long training, and Keras' own on our models."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.models import Concerto
from concerto_tf.models.fitting.schedule import Schedule
from concerto_tf.models.weights import lasting_weights
from concerto_tf.tasks.training.callbacks import InputClock, TrainingProgress


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(("seconds", "low", "high"), [(0.0, 0.0, 0.2), (0.05, 0.7, 1.0)])
def test_share_of_time_that_is_waited_for_batches(
    strategy: tf.distribute.Strategy, replicas: int, seconds: float, low: float, high: float
) -> None:
    def late(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        tf.py_function(lambda: time.sleep(seconds), [], [])
        return x, x[:, :1]

    with strategy.scope() if replicas > 1 else nullcontext():
        model = keras.Sequential([keras.layers.Input([64]), keras.layers.Dense(1)])
        if not seconds:  # steps much longer than a batch takes
            model = keras.Sequential([model, keras.layers.Dense(2000), keras.layers.Dense(2000)])
        model.compile("sgd", "mse")
    data = tf.data.Dataset.from_tensors(tf.zeros([512, 64])).repeat()
    data = data.map(late) if seconds else data.map(lambda x: (x, x[:, :1])).prefetch(2)
    clock = InputClock()
    history = model.fit(
        clock.on(data),
        steps_per_epoch=8,
        epochs=2,
        verbose=0,
        shuffle=False,
        callbacks=[TrainingProgress(Schedule(512, 2, 8, 8, 2), clock=clock)],
    ).history
    assert low <= history["input_wait"][1] <= high  # the first round compiles


class Stop(keras.callbacks.Callback):
    """Stops a training the hard way at a step of an epoch."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__()
        self.at = (epoch, step)
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (self.epoch, batch) == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_backup_and_restore_goes_on_as_if_nothing_had_been(
    strategy: tf.distribute.Strategy, tmp_path: Path, replicas: int
) -> None:
    counts = np.random.default_rng(0).poisson(2.0, (48, 30)).astype(np.float32)
    cells = {"genes": np.tile(np.arange(30, dtype=np.int32), (48, 1)), "values": counts}
    data = tf.data.Dataset.from_tensor_slices(cells).batch(16, drop_remainder=True)

    def trained(*callbacks: Any) -> list[np.ndarray]:
        with strategy.scope() if replicas > 1 else nullcontext():
            model = Concerto([f"G{i}" for i in range(30)], hidden_units=8, components=0)
            model.compile(steps=12)  # the learning rate rises and falls
        model.fit(data, epochs=4, verbose=0, callbacks=list(callbacks))
        weights = [*lasting_weights(model), model.optimizer.iterations]
        return [np.array(tf.convert_to_tensor(weight)) for weight in weights]

    def backup() -> Any:
        return keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))

    want = trained()
    with pytest.raises(KeyboardInterrupt):
        trained(backup(), Stop(2, 1))
    for a, b in zip(trained(backup()), want, strict=True):
        np.testing.assert_array_equal(a, b)
