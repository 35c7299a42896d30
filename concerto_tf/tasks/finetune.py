"""Fine-tuning of a trained model to the labels of its cells; resumable."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._calls import checked
from concerto_tf._identity import identity_of_file, identity_of_model, identity_of_records
from concerto_tf._progress import stage
from concerto_tf.errors import Argument, InputError
from concerto_tf.expected import expected, in_words
from concerto_tf.jobs import Job
from concerto_tf.models import load_model
from concerto_tf.models.classifier import (
    Classifier,
    Coarse,
    Exemplars,
    chosen_rows,
    learn_linear,
    measure_types,
    state_novelty,
    weigh_voices,
)
from concerto_tf.models.encoder import Encoder, Teachable, teachable
from concerto_tf.models.fitting.schedule import Schedule, plan_training
from concerto_tf.models.saving import model_file
from concerto_tf.novelty import rejection_rate, steps_below
from concerto_tf.numerics.readout import Lesson, chosen_to_learn
from concerto_tf.records import Records
from concerto_tf.records.batch import Batch
from concerto_tf.records.batch import key as entry_key
from concerto_tf.tasks.annotate import ALPHA
from concerto_tf.tasks.embed import encoder_of
from concerto_tf.tasks.io.agreement import (
    BATCH_CELLS,
    cell_batches,
    check_agreement,
    check_measured,
    seen_modalities,
)
from concerto_tf.tasks.training.arguments import check_arguments
from concerto_tf.tasks.training.distribution import make_strategy
from concerto_tf.tasks.training.job import LAYOUT, finish_training, fit_in_rounds
from concerto_tf.tasks.training.labels import (
    HELD_OUT,
    MISSING,
    grouped,
    hold_out,
    known_labels,
    labelled_batches,
)

if TYPE_CHECKING:
    import tensorflow as tf

_log = logging.getLogger("concerto_tf")


@checked
def finetune(
    model: Encoder | Classifier | str | Path,
    records: Records | str | Path,
    out: str | Path,
    *,
    label_key: str | None = None,
    levels: Sequence[str] = (),
    target: Records | str | Path | None = None,
    end_to_end: bool = False,
    networks_only: bool = False,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    optimizer: str = "adam",
    strategy: str = "auto",
    calibration: float = 0.2,
    consistency: float = 1.0,
    keep_cells: bool = True,
    seed: int = 0,
    callbacks: Sequence[Any] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Classifier:
    """Teaches a pre-trained model the cell types of labelled cells; called again, it continues.

    Types are told by logistic regression on the embedding and on the genes. Labelled cells that
    were left out tell how much each counts. Networks, which add nothing to these on the sets that
    were tried, are trained where ``epochs``, ``target``, ``networks_only`` or ``end_to_end`` ask
    for it.

    Types are weighted by the square root of their rarity. A part of the labelled cells is held
    out to calibrate the confidence on; embedding and genes learn from them once that is done. Cells
    without a label, or called ``unknown``, count as unlabelled. A type with one cell is learned
    from it and takes no part in the calibration.

    The folder holds ``model.keras``, ``training.csv``, ``tensorboard/`` and ``training.json``,
    where ``calibration`` says how many cells were held out, how well their types are told, and
    within which limits the share of known cells lies that an ``alpha`` of 0.05 rejects.

    Args:
        model: A trained model, or its path. It stays as it is.
        records: Finished records with the model's genes and with labels, or their folder.
        out: Folder of the fine-tuned model.
        label_key: Which labels.
        levels: Two labels instead, the coarse one first: the second is learned, and of each cell
            the coarse one is told too, which is known where the fine one is not. ``label_key`` is
            the fine one where not among them, as in `map`.
        target: Records of unlabelled cells that are to be annotated later, of another donor,
            technology or tissue: teacher and student learn to agree about them.
        end_to_end: Use the network of the model, but none of its weights: they start at random,
            without principal components, as in the paper's comparison; ``networks_only``.
        networks_only: Tell types by teacher and student alone, as in the paper. For a query that
            was measured otherwise, `annotate` learns the types anew from the genes all the same,
            unless ``keep_cells`` is False.
        learning_rate: Peak learning rate; it rises and falls along a cosine. ``None`` for the
            model's own (``recipe.finetuning_rate``).
        epochs: Passes over the cells that train the networks. ``None`` for none, or as many as
            `train` takes where something asks for networks.
        batch_size, optimizer, strategy, callbacks, progress: As in `train`.
        calibration: Share of the labelled cells that is held out, at most 2,000 cells; 0 holds
            none out, and no cell can be rejected then.
        consistency: Weight lambda of the agreement about target cells.
        keep_cells: Whether the model keeps up to 4,000 of the labelled cells, from which `annotate`
            learns the types anew where a query was measured for a part of the genes, less deeply,
            or lies off as a whole.
        seed: Seed of the new weights, the order, the views and the part held out.

    Returns:
        The fine-tuned model.

    Raises:
        InputError: There are no such labels, or of one type only; model and records do not fit
            together; an argument is unsuitable; or the folder holds something else.

    Reference:
        Concerto, equations 12 and 13.
    """
    coarse_key, label_key = _keys(label_key, levels)
    records = records if isinstance(records, Records) else Records(records)
    target = target if target is None or isinstance(target, Records) else Records(target)
    asked = {
        "task": "finetune",
        "model": (
            identity_of_file(model_file(model))
            if isinstance(model, str | Path)
            else identity_of_model(model)
        ),
        "records": identity_of_records(records),
        "label_key": label_key,
        **({"coarse_key": coarse_key} if coarse_key else {}),
        "target": None if target is None else identity_of_records(target),
        "end_to_end": end_to_end,
        "networks_only": networks_only,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "optimizer": optimizer,
        "calibration": calibration,
        "consistency": consistency,
        "keep_cells": keep_cells,
        "seed": seed,
    }
    with Job(out, asked, LAYOUT) as job:
        if job.finished:
            return load_model(model_file(job.out))
        check_arguments(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer=optimizer,
            strategy=strategy,
        )
        if not 0 <= calibration <= 0.5:
            raise InputError(f"calibration is {calibration}; hold out a share between 0 and 0.5")
        if not 0 <= consistency < np.inf:
            raise InputError(f"consistency is {consistency}; it must not be negative")
        given = teachable(encoder_of(model))
        for cells in (records, target):
            if cells is not None:
                check_agreement(given, cells)
        classes, codes = known_labels(records, label_key)
        groups = None
        if coarse_key:
            groups = Coarse(*grouped(classes, codes, *known_labels(records, coarse_key)))
        held_out = hold_out(codes, calibration, seed)
        scope = make_strategy(strategy)
        replicas = scope.num_replicas_in_sync if scope else 1
        if epochs is None and not (networks_only or end_to_end or target):
            epochs = 0  # networks add nothing to what embedding and genes tell
            if (batch_size, learning_rate, optimizer, consistency) != (None, None, "adam", 1.0):
                told = "no network is trained, and what is said of its training does nothing (%s)"
                _log.warning(told, Argument("epochs", "N"))
        schedule = plan_training(records.n_cells, epochs, batch_size, replicas)
        began = time.perf_counter()
        with scope.scope() if scope else nullcontext():
            fine = Classifier(
                _encoder(given, records, target, end_to_end, seed),
                classes,
                label_key=label_key,
                consistency=consistency,
                coarse=groups,
                seed=seed,
            )
            fine.balance(np.bincount(codes[(codes >= 0) & ~held_out], minlength=len(classes)))
            if target is not None:
                fine.see_target = _measured_as(check_measured(fine.encoder, target))
            fine.compile(optimizer, learning_rate, steps=schedule.steps)
        job.begin()
        with records.naming_damage():
            learned = np.where(held_out, HELD_OUT, codes)
            fit_in_rounds(
                fine,
                lambda done: _data_from(done, fine, records, target, learned, schedule, seed),
                job.out,
                schedule,
                callbacks=callbacks,
                progress=progress,
            )
            with stage("calibration on held-out cells"):
                linear = not (networks_only or end_to_end)
                found = _calibrate(fine, records, codes, held_out, linear, schedule.steps > 0)
            if keep_cells:
                fine.exemplars = Exemplars.of(
                    records.dataset(
                        min(BATCH_CELLS, records.n_cells),
                        modalities=seen_modalities(fine.encoder, records),
                        sources=fine.encoder.sources,
                    ),
                    chosen_rows(codes, held_out, seed),
                    codes,
                    held_out,
                )
        finish_training(
            job,
            fine,
            schedule,
            time.perf_counter() - began,
            records,
            classes=dict(zip(classes, np.bincount(codes[codes >= 0]).tolist(), strict=True)),
            calibration=found,
        )
    return fine


def _keys(label_key: str | None, levels: Sequence[str]) -> tuple[str | None, str]:
    """The coarse and the fine label, of what was asked for."""
    keys = [*levels, *([label_key] if label_key and label_key not in levels else [])]
    if not keys:
        raise InputError("which labels are to be learned? name them", Argument("label_key", "KEY"))
    if len(keys) > 2 or (label_key and keys[-1] != label_key) or len(set(keys)) < len(keys):
        raise InputError(
            f"{', '.join(keys)}: a coarse and a fine label are learned, each once, the coarse one "
            "first",
            "levels",
        )
    return (keys[0] if len(keys) == 2 else None), keys[-1]


def _encoder(
    given: Teachable,
    records: Records,
    target: Records | None,
    end_to_end: bool,
    seed: int,
) -> Teachable:
    """A copy of the encoder, or a fresh one, that knows the sources of all cells."""
    new = [*records.sources, *(target.sources if target is not None else ())]
    if not end_to_end:
        return given.with_sources(list(dict.fromkeys([*given.sources, *new])))
    return given.untrained(list(dict.fromkeys(new)), seed)


def _measured_as(measured: Mapping[str, np.ndarray] | None) -> Callable[[Batch], Batch]:
    """Adds to minibatches which genes they were measured for: the others are no zeros.

    Not in the data set: replicas would share the genes out among them, as if they were cells.
    """
    told = {entry_key(name, "measured"): genes for name, genes in (measured or {}).items()}
    return lambda batch: {**batch, **told}


def _data_from(
    done: int,
    model: Classifier,
    records: Records,
    target: Records | None,
    codes: np.ndarray,
    schedule: Schedule,
    seed: int,
) -> tf.data.Dataset:
    """Batches with labels from a step on, beside those of the target where there is one."""
    import tensorflow as tf

    replicas = model.distribute_strategy.num_replicas_in_sync

    def shuffled(cells: Records) -> tf.data.Dataset:
        size = min(schedule.batch_size, cells.n_cells // replicas * replicas)
        per_epoch = max(1, cells.n_cells // size)
        data = cell_batches(
            model.encoder,
            cells,
            size,
            shuffle=True,
            seed=seed,
            repeat=True,
            first_epoch=done // per_epoch,
            packed=True,
            replicas=replicas,
        )
        return data.skip(done % per_epoch)

    data = labelled_batches(shuffled(records), model.label_key, codes)
    return data if target is None else tf.data.Dataset.zip((data, shuffled(target)))


def _calibrate(
    model: Classifier,
    records: Records,
    codes: np.ndarray,
    held_out: np.ndarray,
    linear: bool,
    trained: bool,
) -> dict[str, Any]:
    """Teaches embedding and genes, measures the held-out cells, and says what that rests on."""
    from sklearn.metrics import f1_score

    def batches(labels: np.ndarray) -> tf.data.Dataset:
        data = cell_batches(model.encoder, records, packed=True)
        table = np.where(labels, codes, MISSING)
        return labelled_batches(data, model.label_key, table)

    def learn(cells: np.ndarray, before: Lesson | None = None) -> Lesson:
        chosen = chosen_to_learn(codes, cells, model.head.n_inputs, model.seed)
        count = np.bincount(codes[cells], minlength=len(model.classes))
        share = 1.0 if before is None else float(chosen.sum() / len(before.label))
        last = before is not None
        return learn_linear(model, batches(chosen), count, share=share, held_out_next=not last)

    summary: dict[str, Any] = {}
    lesson = learn(~held_out & (codes >= 0)) if linear else None
    if lesson is not None:
        weigh_voices(model, lesson, batches(held_out) if trained else None)
        voices = (round(float(voice), 3) for voice in np.array(model.head.voices))
        summary["voices"] = dict(zip(("networks", "embedding", "genes"), voices, strict=True))
    found = measure_types(model, batches, codes, held_out)
    state_novelty(model, batches, codes, held_out, found)
    if lesson is not None:  # what it is calibrated for it does a little better, no more surely
        learn(codes >= 0, lesson)
    n = len(model.calibration)
    summary["cells"] = n
    if n:
        told, truth = found["code"][held_out], codes[held_out]
        summary["accuracy"] = round(float(np.mean(told == truth)), 4)
        summary["macro_f1"] = round(float(f1_score(truth, told, average="macro")), 4)
    said = expected(model.stated, ALPHA) if steps_below(ALPHA, n) else {}
    lost, low, high = rejection_rate(said.get("known_lost", 0.0), n)
    summary["alpha"], summary["rejected"] = ALPHA, round(lost, 4)
    summary["rejected_interval_95"] = [round(low, 4), round(high, 4)]
    if said:
        summary["rejected_by_type"] = said["lost_by_type"]
    if "new_caught" in said:
        summary["new_caught"], summary["new_caught_by_type"] = said["new_caught"], said["by_type"]
    if said:
        _log.info("alpha %g: %s", ALPHA, in_words(said))
    if lost:
        _log.info(
            "calibrated on %d held-out cells: alpha %g rejects %.1f%% of known cells (95%% of such "
            "calibrations: %.1f%% to %.1f%%)",
            n,
            ALPHA,
            100 * lost,
            100 * low,
            100 * high,
        )
    elif n and not steps_below(ALPHA, n):
        _log.warning("calibrated on %d held-out cells, too few to reject any at alpha %g", n, ALPHA)
    return summary
