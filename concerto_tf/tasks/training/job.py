"""A training and its folder: which files are in it, and its rounds."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concerto_tf._files import atomic
from concerto_tf._identity import identity_of_records
from concerto_tf._progress import stage
from concerto_tf.jobs import Job, Layout, read_note
from concerto_tf.models import save_model
from concerto_tf.models.card import FILE_NAME as CARD
from concerto_tf.models.card import model_card
from concerto_tf.models.fingerprint import fingerprint
from concerto_tf.models.fitting.schedule import Schedule
from concerto_tf.models.saving import FILE_NAME, SUMMARY
from concerto_tf.tasks.training.distribution import TrainingProcesses

if TYPE_CHECKING:
    import tensorflow as tf

    from concerto_tf.records import Records

_log = logging.getLogger("concerto_tf")
LAYOUT = Layout(
    "model",
    begun="checkpoint/asked.json",
    finished=SUMMARY,
    results=(FILE_NAME,),
    keep="checkpoint/training.npz",
    scratch=("checkpoint",),
    products=("training.csv", "tensorboard", CARD),
)


def fit_in_rounds(
    model: Any,
    data_from: Callable[[int], tf.data.Dataset],
    out: Path,
    schedule: Schedule,
    *,
    patience: int | None = None,
    validation: tf.data.Dataset | None = None,
    callbacks: Sequence[Any] = (),
    progress: Callable[[int, int], None] | None = None,
    workers: TrainingProcesses | None = None,
) -> None:
    """Trains round by round in the folder of a job that has begun, behind its checkpoint.

    Args:
        model: The compiled model.
        data_from: Endless shuffled batches of this process, from the step on that it is called
            with.
        out: Folder of the model.
        schedule: The plan of the training.
        patience: Rounds without a smaller loss after which it ends; None for never.
        validation: Batches of cells that are held out. Their loss is the one that is looked at, and
            the model has the weights of its smallest one in the end.
        callbacks: Further Keras callbacks.
        progress: Called with the number of cells seen and to be seen.
        workers: The processes that train together; None for this one alone.
    """
    from concerto_tf._keras import keras
    from concerto_tf.tasks.training.callbacks import (
        Best,
        Checkpoint,
        InputClock,
        Log,
        StopOnNaN,
        TrainingProgress,
        closing_log,
        has_ended,
        saved_rounds,
        trim_log,
    )

    checkpoint, log_file = out / "checkpoint", out / "training.csv"
    first = saved_rounds(checkpoint)
    workers = workers or TrainingProcesses(None)
    if workers.first:
        trim_log(log_file, first)
    last = first if has_ended(checkpoint) else schedule.rounds
    if 0 < first < last:
        _log.info("continuing at round %d of %d", first + 1, last)
    stopping = None
    if patience is not None:
        stopping = keras.callbacks.EarlyStopping(
            "loss" if validation is None else "val_loss",
            min_delta=1e-3 if validation is None else 0.0,
            patience=patience,
            start_from_epoch=math.ceil(model.recipe.settling_steps / schedule.steps_per_round),
        )
    clock = InputClock()
    log = Log(str(log_file), append=bool(first))
    board = keras.callbacks.TensorBoard(str(out / "tensorboard"), write_graph=False)
    with closing_log(log), ExitStack() as first_step:
        first_step.enter_context(stage("compilation of the first training step"))
        model.fit(
            workers.distribute(clock.on(data_from(first * schedule.steps_per_round))),
            epochs=last,
            initial_epoch=first,
            steps_per_epoch=schedule.steps_per_round,
            verbose=0,
            validation_data=validation,
            callbacks=[
                TrainingProgress(schedule, progress if workers.first else None, clock),
                keras.callbacks.LambdaCallback(
                    on_train_batch_end=lambda batch, logs: first_step.close()
                ),
                StopOnNaN(),
                *([log, board] if workers.first else []),
                *([] if stopping is None else [stopping]),
                *([] if stopping is None or validation is None else [Best(checkpoint, stopping)]),
                *callbacks,
                Checkpoint(checkpoint, stopping, workers.first, schedule.steps_per_round),
            ],
        )


def as_trained(folder: Path, model: Any) -> dict[str, Any]:
    """What the options of a finished training came to, those included that were left open.

    Args:
        folder: Folder of the model.
        model: The model there.
    """
    told = read_note(folder / SUMMARY) or {}
    asked = told.get("asked") or {}
    given = {name: value for name, value in asked.items() if value is not None}
    preset = {"genes": model.recipe.genes, "learning_rate": model.recipe.learning_rate}
    done = {name: told[name] for name in ("epochs", "batch_size") if name in told}
    return {
        "preset": "default",
        **preset,
        **{name: value for name, value in given.items() if name not in ("records", "seed")},
        **done,
    }


def finish_training(
    job: Job, model: Any, schedule: Schedule, seconds: float, records: Records, **found: Any
) -> None:
    """Saves the trained model, its card and, last, the summary of the training."""
    from concerto_tf.tasks.training.callbacks import saved_rounds

    save_model(model, job.out / FILE_NAME)
    # Fewer than planned where it ended early.
    rounds = min(schedule.rounds, saved_rounds(job.out / "checkpoint"))
    facts = {
        "epochs": round(schedule.passes(rounds), 2),
        "batch_size": schedule.batch_size,
        "steps": rounds * schedule.steps_per_round,
        "fingerprint": fingerprint(model),
        **found,
        "seconds": round(seconds, 3),
        "data": _data(records),
    }
    with atomic(job.out / CARD) as temporary:
        temporary.write_text(model_card(model, {"asked": job.asked, **facts}), "utf-8")
    job.finish(**facts)


def _data(records: Records) -> dict[str, Any]:
    """What a model was trained on, as its card tells it."""
    manifest = records.manifest
    return {
        "cells": records.n_cells,
        "genes": records.n_genes,
        "units": records.units,
        "sources": dict(zip(records.sources, manifest.cells_per_source, strict=True)),
        "inputs": [{key: item[key] for key in ("name", "n_cells")} for item in manifest.inputs],
        "sha256": identity_of_records(records),
    }
