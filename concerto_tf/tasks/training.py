"""A training and its folder: what was asked for, who may continue in it, how it goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concerto_tf import _files
from concerto_tf.errors import InputError
from concerto_tf.models import ContrastiveModel, load_model, save_model
from concerto_tf.models.saving import FILE_NAME, model_file
from concerto_tf.models.schedule import Schedule
from concerto_tf.records import Records
from concerto_tf.tasks.distribution import Workers

if TYPE_CHECKING:
    import tensorflow as tf

_log = logging.getLogger("concerto_tf")
#: What was asked for and what came of it; written last.
SUMMARY = "training.json"


def take_over(out: Path, asked: dict[str, Any]) -> ContrastiveModel | None:
    """A model that the same call has finished in ``out``; makes sure that nothing else is there."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a folder for the model")
    summary, begun = out / SUMMARY, out / "checkpoint" / "asked.json"
    if summary.exists() and (out / FILE_NAME).exists():
        if json.loads(summary.read_text())["asked"] == asked:
            with suppress(FileNotFoundError):  # another worker may be at it too
                _files.remove(out / "checkpoint")  # of a call that was killed in its last moment
            return load_model(model_file(out))
        raise InputError(
            f"{out}: holds a model that was trained on other records or with other options; name "
            "another folder, or remove this one"
        )
    if begun.exists():
        if json.loads(begun.read_text()) == asked:
            return None
        raise InputError(
            f"{out}: holds an unfinished training with other records or options; name another "
            "folder, or remove this one"
        )
    # A call that was killed right at its start leaves an empty folder of checkpoints.
    names = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if any(not name.startswith(".") for name in names - {begun.parent.name}):
        raise InputError(f"{out}: is not empty and holds no model; name another folder")
    return None


def begin(out: Path, asked: dict[str, Any]) -> None:
    """Makes the folder and notes what is asked for, so that a later call may continue."""
    begun = out / "checkpoint" / "asked.json"
    try:
        begun.parent.mkdir(parents=True, exist_ok=True)
        for folder in (out, begun.parent):
            _files.remove_temporaries(folder)
        _files.write_json(begun, asked)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); name another folder"
        ) from error


def fit_in_rounds(
    model: Any,
    data_from: Callable[[int], tf.data.Dataset],
    out: Path,
    schedule: Schedule,
    *,
    patience: int | None = None,
    callbacks: Sequence[Any] = (),
    progress: Callable[[int, int], None] | None = None,
    verbose: int = 0,
    workers: Workers | None = None,
) -> None:
    """Trains round by round in a folder that `begin` made, going on behind its checkpoint.

    Args:
        model: The compiled model.
        data_from: Endless shuffled batches of this process, from the step on that it is called
            with.
        out: Folder of the model.
        schedule: The plan of the training.
        patience: Rounds without a smaller loss after which it ends; None for never.
        callbacks: Further Keras callbacks.
        progress: Called with the number of cells seen and to be seen.
        verbose: As in `keras.Model.fit`.
        workers: The processes that train together; None for this one alone.
    """
    from concerto_tf._keras import keras
    from concerto_tf.models.callbacks import (
        Checkpoint,
        InputClock,
        Log,
        Progress,
        StopOnNaN,
        closing_log,
        has_ended,
        saved_rounds,
        trim_log,
    )

    checkpoint, log_file = out / "checkpoint", out / "training.csv"
    first = saved_rounds(checkpoint)
    workers = workers or Workers(None)
    if workers.first:
        trim_log(log_file, first)
    last = first if has_ended(checkpoint) else schedule.rounds
    if 0 < first < last:
        _log.info("continuing at round %d of %d", first + 1, last)
    stopping = None
    if patience is not None:
        stopping = keras.callbacks.EarlyStopping(
            "loss",
            min_delta=1e-3,
            patience=patience,
            start_from_epoch=math.ceil(model.recipe.settling_steps / schedule.steps_per_round),
        )
    clock = InputClock()
    log = Log(str(log_file), append=bool(first))
    board = keras.callbacks.TensorBoard(str(out / "tensorboard"), write_graph=False)
    with closing_log(log):
        model.fit(
            workers.distribute(clock.on(data_from(first * schedule.steps_per_round))),
            epochs=last,
            initial_epoch=first,
            steps_per_epoch=schedule.steps_per_round,
            verbose=verbose if workers.first else 0,
            callbacks=[
                Progress(schedule, progress if workers.first else None, clock),
                StopOnNaN(),
                *([log, board] if workers.first else []),
                *([] if stopping is None else [stopping]),
                *callbacks,
                Checkpoint(checkpoint, stopping, workers.first, schedule.steps_per_round),
            ],
        )


def finish(
    model: Any, out: Path, asked: dict[str, Any], schedule: Schedule, seconds: float, **found: Any
) -> None:
    """Leaves the trained model and, last, what was asked for and what came of it."""
    from concerto_tf.models.callbacks import saved_rounds

    save_model(model, out / FILE_NAME)
    rounds = saved_rounds(out / "checkpoint")  # fewer than planned where it ended early
    _files.write_json(
        out / SUMMARY,
        {
            "asked": asked,
            "epochs": round(schedule.passes(rounds), 2),
            "batch_size": schedule.batch_size,
            "steps": rounds * schedule.steps_per_round,
            **found,
            "seconds": round(seconds, 3),
        },
    )
    _files.remove(out / "checkpoint")


def withdraw(out: Path) -> None:
    """Takes back a training that came to nothing, so that a mended call finds an empty folder."""
    from concerto_tf.models.callbacks import saved_rounds

    if saved_rounds(out / "checkpoint"):
        return
    for name in ("checkpoint", "training.csv", "tensorboard"):
        _files.remove(out / name)
    if not any(out.iterdir()):
        _files.remove(out)


def fingerprint(records: Records) -> str:
    """What identifies the content of records: the checksums of their shards."""
    digest = hashlib.sha256()
    for shard in records.manifest.shards:
        digest.update(shard.sha256.encode())
    return digest.hexdigest()
