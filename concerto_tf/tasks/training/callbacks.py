"""Keras callbacks of long trainings: progress, checkpoints, and an end if the loss fails."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._files import atomic
from concerto_tf._keras import keras
from concerto_tf._paths import as_path
from concerto_tf.errors import InputError
from concerto_tf.models.fitting.schedule import Schedule
from concerto_tf.models.objects import without_automatic_names
from concerto_tf.models.weights import lasting_weights

_FILE, _BEST = "training.npz", "best.npz"
_DAMAGED = (zipfile.BadZipFile, zlib.error)
_log = logging.getLogger("concerto_tf")


def saved_rounds(folder: str | Path) -> int:
    """Number of rounds that the checkpoint in a folder has behind it; 0 where there is none.

    A damaged one is removed, and said: the training then begins anew.
    """
    path = as_path(folder) / _FILE
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            for i in range(int(saved["count"])):
                saved[f"v{i}"]  # whose checksum is compared as it is read
            for name in ("model", "steps", "ended", "early_stopping"):
                saved[name]
            return int(saved["rounds"])
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, LookupError, EOFError, NotImplementedError, *_DAMAGED) as error:
        _log.warning("%s: is damaged (%s); the training begins anew", path, error)
        path.unlink(missing_ok=True)
        return 0


def has_ended(folder: str | Path) -> bool:
    """Whether the training of the checkpoint in a folder was stopped early, and so is over."""
    return bool(_saved(folder, "ended"))


def _saved(folder: str | Path, name: str) -> np.ndarray | None:
    """An entry of the checkpoint in a folder; None where there is none."""
    path = as_path(folder) / _FILE
    if not path.exists():
        return None
    with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
        return saved[name]


def trim_log(path: str | Path, rounds: int) -> None:
    """Cuts a CSV log back to the rounds that are in the checkpoint.

    A training killed between the two would otherwise log its last round twice.

    Args:
        path: A file of Keras' `CSVLogger`; need not exist.
        rounds: Rounds to keep.
    """
    path = as_path(path)
    if not path.exists():
        return
    try:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
    except (ValueError, csv.Error):
        _log.warning("%s: is damaged, and begun anew", path)
        rows = []
    with atomic(path) as temporary, open(temporary, "w", newline="") as file:
        csv.writer(file).writerows(rows[: rounds + 1])


class Log(keras.callbacks.CSVLogger):
    """Keras' log, whose file may be in an object store; `closing_log` closes it."""

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.writer = None  # Keras would ask the file whether it is closed, and such do not know


@contextmanager
def closing_log(log: keras.callbacks.CSVLogger) -> Iterator[None]:
    """Closes the file of a log also where training is stopped; Keras then leaves it open."""
    try:
        yield
    finally:
        file = getattr(log, "csv_file", None)
        if file is not None:
            file.close()


class Checkpoint(keras.callbacks.Callback):
    """Saves the whole state of a training after each round, and restores it at the start.

    Weights, the counters behind the random views, the optimizer and early stopping go into one
    file that is either whole or not there, so that a training killed at any moment continues as
    if nothing had happened.

    Args:
        folder: Folder of the checkpoint; must exist.
        early_stopping: Keras' callback of that name in the same training. List it, and whatever
            else may end the training, before this one.
        save: Whether to save. Of several processes that train together all restore, one saves.
        steps: Minibatches of a round; a training in other rounds is not continued.
    """

    def __init__(
        self,
        folder: str | Path,
        early_stopping: keras.callbacks.EarlyStopping | None = None,
        save: bool = True,
        steps: int = 0,
    ) -> None:
        super().__init__()
        self._save, self._steps = save, steps
        self._path = as_path(folder) / _FILE
        self._early_stopping = early_stopping

    def _variables(self) -> list[Any]:
        optimizer = self.model.optimizer
        variables = optimizer.variables
        return [*lasting_weights(self.model), *(variables() if callable(variables) else variables)]

    def _digest(self) -> str:
        """What tells the model's settings apart, defaults of other versions among them."""
        config = without_automatic_names({**self.model.get_config(), "name": None})
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            variables = self._variables()
            if int(saved["count"]) != len(variables):
                raise InputError(
                    f"{self._path}: the checkpoint is of another model or optimizer; remove it"
                )
            if "model" not in saved or str(saved["model"]) != self._digest():
                raise InputError(
                    f"{self._path}: the checkpoint is of a model with other settings, or by "
                    "another version; continue as it began, or remove it"
                )
            if "steps" not in saved or int(saved["steps"]) != self._steps:
                raise InputError(
                    f"{self._path}: the checkpoint is of a training on another number of devices "
                    "or workers, or by another version; continue as it began, or remove it"
                )
            for i, variable in enumerate(variables):
                variable.assign(saved[f"v{i}"])
            state = json.loads(str(saved["early_stopping"]))
        if self._early_stopping is not None:
            self._early_stopping.__dict__.update(state)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if not self._save:
            return
        arrays = {f"v{i}": variable.numpy() for i, variable in enumerate(self._variables())}
        stopping = self._early_stopping
        state = {}
        if stopping is not None:  # which knows no best yet where it waits for a start
            best = None if stopping.best is None else float(stopping.best)
            state = {"wait": stopping.wait, "best": best}
        counts = {
            "rounds": epoch + 1,
            "count": len(arrays),
            "ended": self.model.stop_training,
            "steps": self._steps,
            "model": self._digest(),
        }
        with atomic(self._path) as temporary, open(temporary, "wb") as file:
            np.savez(file, early_stopping=json.dumps(state), **counts, **arrays)


class Best(keras.callbacks.Callback):
    """Keeps the weights of the round with the smallest loss on held-out cells, also over a stop.

    Args:
        folder: Folder of the checkpoint; must exist.
        early_stopping: Keras' callback of that name in the same training. List it before this one,
            and this one before `Checkpoint`.
    """

    def __init__(self, folder: str | Path, early_stopping: keras.callbacks.EarlyStopping) -> None:
        super().__init__()
        self._path = as_path(folder) / _BEST
        self._early_stopping = early_stopping

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # Rounds that do not compare yet do not count as waiting: the last of them is kept.
        if self._early_stopping.wait:
            return
        arrays = {f"v{i}": w.numpy() for i, w in enumerate(lasting_weights(self.model))}
        loss = (logs or {})[self._early_stopping.monitor]
        with atomic(self._path) as temporary, open(temporary, "wb") as file:
            np.savez(file, rounds=epoch + 1, loss=loss, **arrays)


def take_best(model: Any, folder: str | Path) -> tuple[int, float]:
    """Gives a model the weights that `Best` has kept.

    Args:
        model: The model that was trained.
        folder: Folder of the checkpoint.

    Returns:
        The number of rounds behind them, and their loss on the held-out cells.
    """
    with (as_path(folder) / _BEST).open("rb") as file, np.load(file, allow_pickle=False) as saved:
        for i, weight in enumerate(lasting_weights(model)):
            weight.assign(saved[f"v{i}"])
        return int(saved["rounds"]), float(saved["loss"])


class InputClock:
    """Measures how long the reader of a dataset waits for it.

    Example:

    >>> import time
    >>> import tensorflow as tf
    >>> clock = InputClock()
    >>> for _ in clock.on(tf.data.Dataset.range(4)):
    ...     time.sleep(0.01)
    >>> 0 < clock.read() < 0.04
    True
    """

    def __init__(self) -> None:
        with tf.device("CPU:0"):  # where datasets are computed
            self._seconds = tf.Variable(0.0, trainable=False, dtype=tf.float64)

    def on(self, data: tf.data.Dataset) -> tf.data.Dataset:
        """The same dataset, watched. Anything prefetched behind it is not waited for."""

        def count(asked: tf.Tensor, *element: Any) -> Any:
            self._seconds.assign_add(tf.timestamp() - asked)
            return element[0] if len(element) == 1 else element

        # An element is asked for in the order of the zip: first the time, then what may take some.
        asked = tf.data.Dataset.counter().map(lambda _: tf.timestamp())
        return tf.data.Dataset.zip((asked, data)).map(count)

    def read(self) -> float:
        """Seconds since the last call of this."""
        seconds = float(self._seconds.numpy())
        self._seconds.assign_sub(seconds)
        return seconds


class TrainingProgress(keras.callbacks.Callback):
    """Adds speed and passes over the data to a round's logs, and says how far the training is.

    Args:
        schedule: The plan of the training.
        report: Called after every step with the number of cells seen and to be seen.
        clock: Measures the wait for batches, which is then added to the logs, too.
    """

    def __init__(
        self,
        schedule: Schedule,
        report: Callable[[int, int], None] | None = None,
        clock: InputClock | None = None,
    ) -> None:
        super().__init__()
        self._clock = clock
        self._schedule = schedule
        self._report = report
        self._done = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._began = time.perf_counter()
        if self._clock is not None:
            self._clock.read()
        self._done = epoch * self._schedule.steps_per_round

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._done += 1
        if self._report is not None:
            cells = self._schedule.batch_size
            self._report(self._done * cells, self._schedule.steps * cells)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        cells = self._schedule.steps_per_round * self._schedule.batch_size
        if logs is not None:
            seconds = time.perf_counter() - self._began
            logs["cells_per_second"] = cells / seconds
            if self._clock is not None:
                logs["input_wait"] = min(1.0, self._clock.read() / seconds)
            logs["passes"] = float(self._schedule.passes(epoch + 1))


class StopOnNaN(keras.callbacks.Callback):
    """Ends a training whose loss is not finite, and says what to do."""

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if not np.isfinite(loss):
            raise InputError(
                f"the loss became {loss} at step {batch + 1}; train again, into another "
                "folder, with a smaller step",
                "learning_rate",
            )
