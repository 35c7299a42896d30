"""Training a model on records: what to look at, how long, on which devices; resumable."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from concerto_tf import _files
from concerto_tf.errors import InputError
from concerto_tf.models import Concerto, ContrastiveModel, load_model, save_model
from concerto_tf.models.optimizers import make_optimizer
from concerto_tf.models.saving import FILE_NAME, model_file
from concerto_tf.models.schedule import Schedule, plan_training
from concerto_tf.records import Records, resolve_genes

_log = logging.getLogger("concerto_tf")

METHODS: dict[str, type[ContrastiveModel]] = {"concerto": Concerto}
DEFAULT_GENES = "hvg:2000"
FEWEST_CELLS = 10
STRATEGIES = ("auto", "one", "mirrored")
SUMMARY = "training.json"


def train(
    records: Records | str | Path,
    out: str | Path,
    *,
    method: str = "concerto",
    preset: str | None = None,
    genes: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    optimizer: str = "adam",
    strategy: str = "auto",
    start: str | Path | None = None,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
    progress: Callable[[int, int], None] | None = None,
    verbose: int = 0,
) -> ContrastiveModel:
    """Trains a model and leaves it in a folder; called again after a stop, it continues.

    The folder holds ``model.keras``, ``training.csv`` and ``tensorboard/`` (loss, alignment,
    uniformity, effective rank, cells per second by round), and ``training.json`` (what was asked
    for, and how long it took). While training it also holds ``checkpoint/``.

    Args:
        records: Finished records, or their folder.
        out: Folder of the model.
        method: ``concerto``.
        preset: ``paper`` for the values printed in the method's paper; ``None`` for what embeds
            best.
        genes: ``all``, ``hvg:N`` or a file with one gene per line; by default ``hvg:2000``.
        epochs: Passes over the cells; ``None`` follows from their number.
        batch_size: Cells per minibatch over all devices.
        learning_rate: Learning rate.
        optimizer: ``adam``, ``adamw``, ``lamb``, ``lazyadam`` or ``sgd``.
        strategy: ``one`` device, ``mirrored`` over all GPUs of this machine, or ``auto``:
            mirrored where there are several.
        start: A model to continue from, on the same or on other cells of the same genes.
        seed: Seed of weights, order and views.
        options: Further arguments of the model's class.
        callbacks: Further Keras callbacks.
        progress: Called with the number of cells seen and to be seen.
        verbose: As in `keras.Model.fit`.

    Returns:
        The trained model.

    Raises:
        InputError: The records are too small, do not fit ``start``, or an argument is unsuitable;
            or the folder holds a model that other arguments made.
    """
    records = records if isinstance(records, Records) else Records(records)
    out = Path(out)
    asked = {
        "method": method, "preset": preset, "genes": _named_genes(genes), "epochs": epochs,
        "batch_size": batch_size, "learning_rate": learning_rate, "optimizer": optimizer,
        "start": None if start is None else str(start), "seed": seed, "options": options or {},
        "records": _fingerprint(records),
    }  # fmt: skip
    asked = json.loads(json.dumps(asked))  # as it reads when it comes back from its file
    finished = _take_over(out, asked)
    if finished is not None:
        return finished
    check_arguments(
        method=method, preset=preset, epochs=epochs, batch_size=batch_size,
        learning_rate=learning_rate, optimizer=optimizer, strategy=strategy,
    )  # fmt: skip
    check_cells(
        str(records.path),
        records.n_cells,
        records.n_genes,
        dict(zip(records.sources, records.manifest.cells_per_source, strict=True)),
    )
    scope = make_strategy(strategy)
    schedule = plan_training(
        records.n_cells, epochs, batch_size, scope.num_replicas_in_sync if scope else 1
    )
    began = time.perf_counter()
    with scope.scope() if scope else nullcontext():
        model = (
            _continue(start, records)
            if start is not None
            else _create(method, preset, genes, records, seed, options or {})
        )
        model.compile(optimizer, learning_rate)
    _begin(out, asked)
    try:
        with records.naming_damage():
            _fit(model, records, out, schedule, seed, start is None, callbacks, progress, verbose)
    except InputError:
        _withdraw(out)
        raise
    save_model(model, out / FILE_NAME)
    _files.write_json(
        out / SUMMARY,
        {
            "asked": asked,
            "epochs": schedule.epochs,
            "batch_size": schedule.batch_size,
            "steps": schedule.steps,
            "genes": model.n_inputs,
            "seconds": round(time.perf_counter() - began, 3),
        },
    )
    _files.remove(out / "checkpoint")
    return model


def check_cells(where: str, n_cells: int, n_genes: int, sources: Mapping[str, int]) -> None:
    """Raises InputError if there is too little to learn from.

    Args:
        where: What the cells lie in, for the message.
        n_cells: Number of cells.
        n_genes: Number of genes.
        sources: Number of cells by source.
    """
    if n_cells < FEWEST_CELLS:
        raise InputError(
            f"{where}: {n_cells} cell{'s' * (n_cells != 1)}; contrastive learning compares cells "
            f"and needs at least {FEWEST_CELLS}"
        )
    if n_genes < 2:
        raise InputError(f"{where}: one gene; training needs at least 2 genes to compare cells by")
    for name, count in sources.items():
        if count == 1:
            raise InputError(
                f"{where}: source {name!r} has one cell, which has no statistics of its own; merge "
                "it with another source, leave it out, or train without a source key"
            )


def make_strategy(name: str) -> Any:
    """The distribution strategy of a name (`STRATEGIES`), or None for one device."""
    import tensorflow as tf

    if name == "one" or (name == "auto" and len(tf.config.list_logical_devices("GPU")) < 2):
        return None
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def check_arguments(
    *,
    method: str = "concerto",
    preset: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    optimizer: str = "adam",
    strategy: str = "auto",
    **others: Any,
) -> None:
    """Raises InputError if an argument of `train` is unsuitable, whatever the cells."""
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}; choose one of {', '.join(METHODS)}")
    if preset is not None and preset not in METHODS[method].PRESETS:
        known = ", ".join(METHODS[method].PRESETS)
        raise InputError(f"{method} has no preset {preset!r}; it has {known}")
    for name, value in {
        "epochs": epochs, "batch size": batch_size, "learning rate": learning_rate,
    }.items():  # fmt: skip
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} is {value}; it must be positive")
    if batch_size == 1:
        raise InputError("batch size is 1; a cell is contrasted with others, so at least 2")
    if strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise InputError(f"there is no strategy {strategy!r}; choose one of {known}")
    make_optimizer(optimizer, 1e-3)


def _create(
    method: str,
    preset: str | None,
    genes: str | None,
    records: Records,
    seed: int,
    options: dict[str, Any],
) -> ContrastiveModel:
    chosen = resolve_genes(genes or DEFAULT_GENES, records)
    cls = METHODS[method]
    return cls.from_records(
        records, genes=chosen, seed=seed, **{**(cls.PRESETS[preset] if preset else {}), **options}
    )


def _continue(start: str | Path, records: Records) -> ContrastiveModel:
    model = load_model(start)
    if tuple(records.vocabulary.ids) != model.vocabulary:
        raise InputError(
            f"{records.path}: its genes are not those of the model {start}; convert the cells "
            f"again with --like {start}"
        )
    check_units(model, records)
    if set(records.sources) <= set(model.sources):
        return model
    return model.with_sources(records.sources)


def check_units(model: ContrastiveModel, records: Records) -> None:
    """Raises InputError if a model of counts is given normalised values, or the other way."""
    if (records.units == "counts") != (model.target_sum is not None):
        kinds = {True: "raw counts", False: "values that are normalised already"}
        raise InputError(
            f"{records.path}: holds {kinds[records.units == 'counts']}, but the model was trained "
            f"on {kinds[model.target_sum is not None]}; give it those (for example --layer counts)"
        )


def _fit(
    model: ContrastiveModel,
    records: Records,
    out: Path,
    schedule: Schedule,
    seed: int,
    new: bool,
    callbacks: Sequence[Any],
    progress: Callable[[int, int], None] | None,
    verbose: int,
) -> None:
    from concerto_tf._keras import keras
    from concerto_tf.models.callbacks import (
        Checkpoint,
        Progress,
        StopOnNaN,
        closing_log,
        has_ended,
        saved_rounds,
        trim_log,
    )

    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint"
    first = saved_rounds(checkpoint)
    trim_log(out / "training.csv", first)
    last = first if has_ended(checkpoint) else schedule.rounds
    if 0 < first < last:
        _log.info("continuing at round %d of %d", first + 1, last)
    data = records.dataset(
        schedule.batch_size, shuffle=True, seed=seed, repeat=True, genes=model.genes,
        first_epoch=first * schedule.epochs_per_round, sources=model.sources, packed=True,
        replicas=model.distribute_strategy.num_replicas_in_sync,
    )  # fmt: skip
    if first:
        model.started.assign(1)  # as the checkpoint will say, too
    elif new:
        model.initialize(
            records.dataset(
                schedule.batch_size, genes=model.genes, sources=model.sources, packed=True
            )
        )
    # Ends a training that has nothing left to gain; a falling loss keeps it going.
    stopping = keras.callbacks.EarlyStopping("loss", min_delta=1e-3, patience=10)
    log = keras.callbacks.CSVLogger(str(out / "training.csv"), append=bool(first))
    with closing_log(log):
        model.fit(
            data,
            epochs=last,
            initial_epoch=first,
            steps_per_epoch=schedule.steps_per_round,
            verbose=verbose,
            callbacks=[
                Progress(schedule, progress),
                StopOnNaN(),
                log,
                keras.callbacks.TensorBoard(str(out / "tensorboard"), write_graph=False),
                stopping,
                *callbacks,
                Checkpoint(checkpoint, stopping),
            ],
        )


def _take_over(out: Path, asked: dict[str, Any]) -> ContrastiveModel | None:
    """A model that the same call has finished in ``out``; makes sure that nothing else is there."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a folder for the model")
    summary, begun = out / SUMMARY, out / "checkpoint" / "asked.json"
    if summary.exists() and (out / FILE_NAME).exists():
        if json.loads(summary.read_text())["asked"] == asked:
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
    if out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise InputError(f"{out}: is not empty and holds no model; name another folder")
    return None


def _begin(out: Path, asked: dict[str, Any]) -> None:
    """Makes the folder and notes what is asked for, so that a later call may continue."""
    begun = out / "checkpoint" / "asked.json"
    try:
        begun.parent.mkdir(parents=True, exist_ok=True)
        _files.write_json(begun, asked)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); name another folder"
        ) from error


def _withdraw(out: Path) -> None:
    """Takes back a training that came to nothing, so that a mended call finds an empty folder."""
    from concerto_tf.models.callbacks import saved_rounds

    if saved_rounds(out / "checkpoint"):
        return
    for name in ("checkpoint", "training.csv", "tensorboard"):
        _files.remove(out / name)
    if not any(out.iterdir()):
        out.rmdir()


def _named_genes(genes: str | None) -> str | None:
    """The option, with a list of genes by its content: the file may change."""
    if genes is None or not Path(genes).is_file():
        return genes
    return f"{genes} {_files.sha256(genes)}"


def _fingerprint(records: Records) -> str:
    """What identifies the content of records: the checksums of their shards."""
    import hashlib

    digest = hashlib.sha256()
    for shard in records.manifest.shards:
        digest.update(shard.sha256.encode())
    return digest.hexdigest()
