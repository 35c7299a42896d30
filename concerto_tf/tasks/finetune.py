"""Fine-tuning of a trained model to the labels of its cells; resumable."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf import _files
from concerto_tf.errors import InputError
from concerto_tf.models import ContrastiveModel, save_model
from concerto_tf.models.classifier import UNKNOWN, Classifier
from concerto_tf.models.saving import FILE_NAME, model_file
from concerto_tf.models.schedule import Schedule, plan_training
from concerto_tf.models.typicality import rejection_rate, steps_below
from concerto_tf.records import Records
from concerto_tf.tasks.agreement import check_units, check_vocabulary, seen_modalities
from concerto_tf.tasks.annotate import ALPHA
from concerto_tf.tasks.embed import encoder_of
from concerto_tf.tasks.train import check_arguments, make_strategy
from concerto_tf.tasks.training import SUMMARY, begin, fingerprint, take_over, withdraw

if TYPE_CHECKING:
    import tensorflow as tf

_log = logging.getLogger("concerto_tf")

#: Peak learning rate, as in the paper.
LEARNING_RATE = 1e-3
#: More held-out cells than this make the calibration no better.
MOST_CALIBRATION_CELLS = 2_000
#: Label codes of cells without a label, and of cells held out of training.
_MISSING, _HELD_OUT = -1, -2
_BATCH_CELLS = 256
#: Components in which types are compared, the first of these that the cells are enough for.
_COMPONENTS = (50, 30, 20, 10)


def finetune(
    model: ContrastiveModel | Classifier | str | Path,
    records: Records | str | Path,
    out: str | Path,
    *,
    label_key: str,
    target: Records | str | Path | None = None,
    end_to_end: bool = False,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    optimizer: str = "adam",
    strategy: str = "auto",
    calibration: float = 0.2,
    consistency: float = 1.0,
    seed: int = 0,
    callbacks: Sequence[Any] = (),
    progress: Callable[[int, int], None] | None = None,
    verbose: int = 0,
) -> Classifier:
    """Teaches a pre-trained model the cell types of labelled cells; called again, it continues.

    Types are weighted by the square root of their rarity. A part of the labelled cells is held
    out of the training, to calibrate the confidence on; nothing of them is learned. Cells without
    a label, or called ``unknown``, count as unlabelled. A type with one cell is learned from it
    and takes no part in the calibration.

    The folder holds ``model.keras``, ``training.csv``, ``tensorboard/`` and ``training.json``,
    where ``calibration`` says how many cells were held out, how well their types are told, and
    within which limits the share of known cells lies that an ``alpha`` of 0.05 rejects.

    Args:
        model: A trained model, or its path. It stays as it is.
        records: Finished records with the model's genes and with labels, or their folder.
        out: Folder of the fine-tuned model.
        label_key: Which labels.
        target: Records of unlabelled cells that are to be annotated later, of another donor,
            technology or tissue: teacher and student learn to agree about them.
        end_to_end: Use the network of the model, but none of its weights: they start at random,
            without principal components, as in the paper's comparison.
        epochs: Passes over the cells; ``None`` follows from their number.
        batch_size: Cells per minibatch over all devices.
        learning_rate: Peak learning rate; it rises and falls along a cosine.
        optimizer: As for `train`.
        strategy: As for `train`.
        calibration: Share of the labelled cells that is held out, at most 2,000 cells; 0 holds
            none out, and no cell can be rejected then.
        consistency: Weight lambda of the agreement about target cells.
        seed: Seed of the new weights, the order, the views and the part held out.
        callbacks: Further Keras callbacks.
        progress: Called with the number of cells seen and to be seen.
        verbose: As in `keras.Model.fit`.

    Returns:
        The fine-tuned model.

    Raises:
        InputError: There are no such labels, or of one type only; model and records do not fit
            together; an argument is unsuitable; or the folder holds something else.

    Reference:
        Concerto, equations 12 and 13.
    """
    records, target = (
        item if item is None or isinstance(item, Records) else Records(item)
        for item in (records, target)
    )
    out = Path(out)
    asked = json.loads(json.dumps({
        "task": "finetune", "model": _identity(model), "records": fingerprint(records),
        "label_key": label_key, "target": None if target is None else fingerprint(target),
        "end_to_end": end_to_end, "epochs": epochs, "batch_size": batch_size,
        "learning_rate": learning_rate, "optimizer": optimizer, "calibration": calibration,
        "consistency": consistency, "seed": seed,
    }))  # fmt: skip
    finished = take_over(out, asked)
    if finished is not None:
        return finished
    check_arguments(
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, optimizer=optimizer,
        strategy=strategy,
    )  # fmt: skip
    if not 0 <= calibration <= 0.5:
        raise InputError(f"calibration is {calibration}; hold out a share between 0 and 0.5")
    if not 0 <= consistency < np.inf:
        raise InputError(f"consistency is {consistency}; it must not be negative")
    given = encoder_of(model)
    for cells in (records, target):
        if cells is not None:
            check_vocabulary(given, cells)
            check_units(given, cells)
    classes, codes = known_labels(records, label_key)
    held_out = hold_out(codes, calibration, seed)
    scope = make_strategy(strategy)
    replicas = scope.num_replicas_in_sync if scope else 1
    schedule = plan_training(records.n_cells, epochs, batch_size, replicas)
    began = time.perf_counter()
    with scope.scope() if scope else nullcontext():
        fine = Classifier(
            _encoder(given, records, target, end_to_end, seed), classes, label_key=label_key,
            consistency=consistency, seed=seed,
        )  # fmt: skip
        fine.balance(np.bincount(codes[(codes >= 0) & ~held_out], minlength=len(classes)))
        fine.compile(optimizer, learning_rate or LEARNING_RATE, steps=schedule.steps)
    begin(out, asked)
    try:
        with records.naming_damage():
            _fit(
                fine, records, target, np.where(held_out, _HELD_OUT, codes), out, schedule, seed,
                callbacks, progress, verbose,
            )  # fmt: skip
            found = _calibrate(fine, records, codes, held_out)
    except InputError:
        withdraw(out)
        raise
    save_model(fine, out / FILE_NAME)
    _files.write_json(
        out / SUMMARY,
        {
            "asked": asked,
            "epochs": schedule.epochs,
            "batch_size": schedule.batch_size,
            "steps": schedule.steps,
            "classes": dict(zip(classes, np.bincount(codes[codes >= 0]).tolist(), strict=True)),
            "calibration": found,
            "seconds": round(time.perf_counter() - began, 3),
        },
    )
    _files.remove(out / "checkpoint")
    return fine


def known_labels(records: Records, label_key: str) -> tuple[list[str], np.ndarray]:
    """The types that cells are labelled with.

    Args:
        records: Finished records.
        label_key: Which labels.

    Returns:
        Names of the types that have cells, and the code of each cell [n], int64 in the order of
        the input; -1 for cells without a label, or labelled ``unknown``.

    Raises:
        InputError: There are no such labels, or fewer than two types.
    """
    if label_key not in records.labels:
        known = ", ".join(records.labels) or "none"
        raise InputError(
            f"{records.path}: has no label {label_key!r} (there are: {known}); convert again with "
            f"--label-key {label_key}"
        )
    names = records.labels[label_key]
    codes = np.full(records.n_cells, _MISSING)
    for batch in records.dataset(
        min(4096, records.n_cells), genes=np.zeros(0, np.int64), labels=[label_key], pad_last=False
    ):
        codes[batch["row"].numpy()] = batch[f"label/{label_key}"].numpy()
    if UNKNOWN in names and (codes == names.index(UNKNOWN)).any():
        _log.info("%s: cells labelled %r count as unlabelled", label_key, UNKNOWN)
        codes[codes == names.index(UNKNOWN)] = _MISSING
    count = np.bincount(codes[codes >= 0], minlength=len(names))
    present = np.flatnonzero(count)
    if len(present) < 2:
        there = f"all are {names[present[0]]!r}" if len(present) else "none of the cells has one"
        raise InputError(
            f"{records.path}: label {label_key!r} must tell at least two types apart, but {there}; "
            "name another label, or cells of several types"
        )
    for code in present[count[present] == 1]:
        _log.warning(
            "%s: %r has one cell; it is learned from, but nothing tells how well it is known",
            label_key, names[code],
        )  # fmt: skip
    place = np.full(len(names) + 1, _MISSING)
    place[present] = np.arange(len(present))
    return [names[code] for code in present], place[codes]


def hold_out(codes: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Chooses cells to calibrate on, of every type about the same share.

    Args:
        codes: Type of each cell [n]; negative for cells without a label.
        share: Share of the labelled cells; at least as many cells as an alpha of 0.05 takes (19)
            are held out, unless these are more than half, and at most 2,000.
        seed: Seed of the choice.

    Returns:
        Which cells are held out, bool [n]. Every type keeps a cell to learn from.
    """
    chosen = np.zeros(len(codes), bool)
    labelled = np.flatnonzero(codes >= 0)
    if not share or not len(labelled):
        return chosen
    n = max(round(share * len(labelled)), min(19, len(labelled) // 2))
    n = min(n, MOST_CALIBRATION_CELLS)
    rng = np.random.default_rng(seed)
    # A type of one cell keeps it to learn from.
    single = np.flatnonzero(np.bincount(codes[labelled]) == 1)
    labelled = rng.permutation(labelled[~np.isin(codes[labelled], single)])
    n = min(n, len(labelled) // 2)
    if not n:
        return chosen
    # Every k-th of the cells in order of their types: random within them, and in proportion.
    labelled = labelled[np.argsort(codes[labelled], kind="stable")]
    at = (np.arange(n) + rng.random()) * len(labelled) / n
    chosen[labelled[at.astype(int)]] = True
    for code in np.unique(codes[chosen]):
        own = np.flatnonzero(codes == code)
        if chosen[own].all():
            chosen[own[0]] = False
    return chosen


def labelled_batches(data: tf.data.Dataset, label_key: str, codes: np.ndarray) -> tf.data.Dataset:
    """Batches with labels of the cells by their rows.

    Args:
        data: Batches with ``row``.
        label_key: What to call the labels.
        codes: Label of each row; -1 for none, -2 for a cell that is held out: it counts for no
            source either, so that nothing is learned of it.

    Returns:
        The batches with ``label/<label_key>``.
    """
    import tensorflow as tf

    table = tf.constant(codes, tf.int32)

    def labelled(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        row = batch["row"]
        label = tf.where(row >= 0, tf.gather(table, tf.maximum(row, 0)), _HELD_OUT)
        source = tf.where(label == _HELD_OUT, -1, batch["source"])
        return {**batch, "source": source, f"label/{label_key}": tf.maximum(label, _MISSING)}

    return data.map(labelled)


def _identity(model: ContrastiveModel | Classifier | str | Path) -> str:
    """What tells a model apart: the content of its file, or its weights."""
    if isinstance(model, str | Path):
        return _files.sha256(model_file(model))
    digest = hashlib.sha256(json.dumps(model.get_config(), sort_keys=True).encode())
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def _encoder(
    given: ContrastiveModel,
    records: Records,
    target: Records | None,
    end_to_end: bool,
    seed: int,
) -> ContrastiveModel:
    """A copy of the encoder, or a fresh one, that knows the sources of all cells."""
    new = [*records.sources, *(target.sources if target is not None else ())]
    if not end_to_end:
        return given.with_sources(list(dict.fromkeys([*given.sources, *new])))
    config = {**given.get_config(), "sources": list(dict.fromkeys(new)), "seed": seed}
    fresh = type(given).from_config(config)
    fresh.gene_share.assign(given.gene_share)
    fresh.started.assign(1)  # at random
    return fresh


def _fit(
    model: Classifier,
    records: Records,
    target: Records | None,
    codes: np.ndarray,
    out: Path,
    schedule: Schedule,
    seed: int,
    callbacks: Sequence[Any],
    progress: Callable[[int, int], None] | None,
    verbose: int,
) -> None:
    import tensorflow as tf

    from concerto_tf._keras import keras
    from concerto_tf.models.callbacks import (
        Checkpoint,
        Progress,
        StopOnNaN,
        closing_log,
        saved_rounds,
        trim_log,
    )

    checkpoint, log_file = out / "checkpoint", out / "training.csv"
    first = saved_rounds(checkpoint)
    trim_log(log_file, first)
    if first:
        _log.info("continuing at round %d of %d", first + 1, schedule.rounds)
    replicas = model.distribute_strategy.num_replicas_in_sync

    def shuffled(cells: Records, steps: int) -> tf.data.Dataset:
        size = min(schedule.batch_size, cells.n_cells // replicas * replicas)
        per_epoch = max(1, cells.n_cells // size)
        data = cells.dataset(
            size, shuffle=True, seed=seed, repeat=True, genes=model.encoder.genes,
            first_epoch=steps // per_epoch, sources=model.encoder.sources, packed=True,
            modalities=seen_modalities(model.encoder, cells), replicas=replicas,
        )  # fmt: skip
        return data.skip(steps % per_epoch)

    done = first * schedule.steps_per_round
    data = labelled_batches(shuffled(records, done), model.label_key, codes)
    if target is not None:
        data = tf.data.Dataset.zip((data, shuffled(target, done)))
    log = keras.callbacks.CSVLogger(str(log_file), append=bool(first))
    with closing_log(log):
        model.fit(
            data,
            epochs=schedule.rounds,
            initial_epoch=first,
            steps_per_epoch=schedule.steps_per_round,
            verbose=verbose,
            callbacks=[
                Progress(schedule, progress),
                StopOnNaN(),
                log,
                keras.callbacks.TensorBoard(str(out / "tensorboard"), write_graph=False),
                *callbacks,
                Checkpoint(checkpoint),
            ],
        )


def _calibrate(
    model: Classifier, records: Records, codes: np.ndarray, held_out: np.ndarray
) -> dict[str, Any]:
    """Measures the held-out cells, and says what that rests on."""
    from sklearn.metrics import f1_score

    def batches(labels: np.ndarray) -> tf.data.Dataset:
        data = records.dataset(
            min(_BATCH_CELLS, records.n_cells), genes=model.encoder.genes, packed=True,
            sources=model.encoder.sources, modalities=seen_modalities(model.encoder, records),
        )  # fmt: skip
        table = np.where(labels, codes, _MISSING)
        return labelled_batches(data, model.label_key, table)

    learned = ~held_out & (codes >= 0)
    for components in _COMPONENTS:
        model.learn_types(batches(learned), components)
        found = model.calibrate(batches(held_out))
        n = len(model.calibration)
        below = steps_below(ALPHA, n)
        # Components of few cells hold much of their noise: the very cells they were fitted on then
        # look stranger than new ones, and would be rejected when annotated themselves.
        if not below or np.mean(found["score"][learned] < model.calibration[below - 1]) < 2 * ALPHA:
            break
    summary: dict[str, Any] = {"cells": n}
    if n:
        told, truth = found["code"][held_out], codes[held_out]
        summary["accuracy"] = round(float(np.mean(told == truth)), 4)
        summary["macro_f1"] = round(float(f1_score(truth, told, average="macro")), 4)
    expected, low, high = rejection_rate(ALPHA, n)
    summary["alpha"], summary["rejected"] = ALPHA, round(expected, 4)
    summary["rejected_interval_95"] = [round(low, 4), round(high, 4)]
    if expected:
        _log.info(
            "calibrated on %d held-out cells: alpha %g rejects %.1f%% of known cells (95%% of such "
            "calibrations: %.1f%% to %.1f%%)", n, ALPHA, 100 * expected, 100 * low, 100 * high,
        )  # fmt: skip
    elif n:
        _log.warning(
            "calibrated on %d held-out cells, too few to reject any at alpha %g", n, ALPHA
        )
    return summary
