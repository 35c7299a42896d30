"""Training a model on records: what to look at, how long, on which devices; resumable."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concerto_tf import _files
from concerto_tf._paths import as_path
from concerto_tf.errors import InputError
from concerto_tf.models import METHODS, ContrastiveModel, Ensemble, load_model
from concerto_tf.models.callbacks import saved_rounds
from concerto_tf.models.encoder import chosen_genes
from concerto_tf.models.methods import arguments_of
from concerto_tf.models.modality import chosen_modalities
from concerto_tf.models.optimizers import make_optimizer
from concerto_tf.models.presets import DEFAULT
from concerto_tf.models.schedule import Schedule, plan_training
from concerto_tf.models.weights import lasting_weights
from concerto_tf.records import Records, resolve_genes
from concerto_tf.records.batch import RNA
from concerto_tf.tasks.agreement import check_agreement, seen_modalities
from concerto_tf.tasks.distribution import MULTIWORKER, STRATEGIES, Workers, make_strategy
from concerto_tf.tasks.training import (
    begin,
    fingerprint,
    finish,
    fit_in_rounds,
    take_over,
    withdraw,
)

if TYPE_CHECKING:
    import tensorflow as tf

_log = logging.getLogger("concerto_tf")
DEFAULT_METHOD = "concerto"
FEWEST_CELLS = 10
#: Rounds without a smaller loss that end a training; a falling loss keeps it going.
_PATIENCE = 10


def train(
    records: Records | str | Path,
    out: str | Path,
    *,
    method: str | None = None,
    preset: str | None = None,
    members: int = 1,
    genes: str | None = None,
    modalities: Sequence[str] | None = None,
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
        method: ``concerto`` (the default), ``clear``, ``contrastive-sc`` or ``cicl``.
        preset: ``paper`` for the values printed in the method's paper, how long to train among
            them where it says so (``presets`` of the model's class); ``None`` for what embeds
            best.
        members: Number of networks with seeds of their own that the model joins (`Ensemble`).
        genes: ``all``, ``hvg:N`` or a file with one gene per line; by default ``hvg:5000``.
        modalities: Names of the modalities to look at; by default all that the records hold. The
            methods other than ``concerto`` look at one: by default rna, or the only one.
        epochs: Passes over the cells; ``None`` follows from their number.
        batch_size: Cells per minibatch over all devices.
        learning_rate: Learning rate.
        optimizer: ``adam``, ``adamw``, ``lamb``, ``lazyadam`` or ``sgd``.
        strategy: ``one`` device, ``mirrored`` over all GPUs of this machine, or ``auto``:
            mirrored where there are several. ``multiworker``: this call is one of several alike,
            in processes that ``TF_CONFIG`` names and that see the same folders; each reads its
            own shards, and the first of them writes.
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
        Interrupted: Another worker ended; the same call on all of them continues.
    """
    records = records if isinstance(records, Records) else Records(records)
    out = as_path(out)
    asked = {
        "method": method or DEFAULT_METHOD,
        "preset": preset,
        "genes": _named_genes(genes),
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "optimizer": optimizer,
        "start": None if start is None else str(start),
        "seed": seed,
        "options": options or {},
        **({} if modalities is None else {"modalities": list(modalities)}),
        **({} if members == 1 else {"members": members}),
        "records": fingerprint(records),
    }
    asked = json.loads(json.dumps(asked))  # as it reads when it comes back from its file
    scope = make_strategy(strategy) if strategy == MULTIWORKER else None
    workers = Workers(scope)
    finished = take_over(out, asked)
    done = -1 if finished is not None else saved_rounds(out / "checkpoint")
    with workers.naming_loss():
        workers.agree(
            done, f"{out}: not all workers see the same there; name a folder that they share"
        )
    if finished is not None:
        return finished
    check_arguments(
        method=method,
        preset=preset,
        members=members,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=optimizer,
        strategy="one" if strategy == MULTIWORKER else strategy,
    )
    settled = {
        "a method": method,
        "a preset": preset,
        "members": None if members == 1 else members,
        "genes": genes,
        "options": options or None,
    }
    if start is not None and any(value is not None for value in settled.values()):
        given = " and ".join(name for name, value in settled.items() if value is not None)
        raise InputError(f"{start}: has been made with its own; leave out {given}, or the model")
    method = method or DEFAULT_METHOD
    training = None if start is not None else METHODS[method].presets[preset or DEFAULT].training
    check_cells(
        str(records.path),
        records.n_cells,
        records.n_genes,
        dict(zip(records.sources, records.manifest.cells_per_source, strict=True)),
    )
    scope = scope or make_strategy(strategy)
    # No worker has less to read than this in an epoch; what others have more waits for the next.
    shares = [records.n_cells_of(index, workers.count) for index in range(workers.count)]
    n_cells = workers.count * min(shares)
    replicas = scope.num_replicas_in_sync if scope else 1
    began = time.perf_counter()
    with workers.naming_loss(), scope.scope() if scope else nullcontext():
        model = (
            _continue(start, records)
            if start is not None
            else _create(method, preset, members, genes, modalities, records, seed, options or {})
        )
        training = training or model.recipe
        epochs = epochs or training.epochs
        schedule = plan_training(
            n_cells,
            epochs,
            batch_size or training.batch_size,
            replicas,
            model.recipe.most_epochs,
        )
        model = model.for_batches(schedule.batch_size)
        model.compile(
            optimizer,
            learning_rate or training.learning_rate,
            schedule.steps if training.cosine else None,
        )
    if batch_size is not None and schedule.batch_size != batch_size:
        _log.warning(
            "%s: minibatches of %d cells instead of %d, for its %d cells",
            records.path,
            schedule.batch_size,
            batch_size,
            records.n_cells,
        )
    if workers.first:
        begin(out, asked)
    try:
        with records.naming_damage(), workers.naming_loss():
            # A checkpoint holds what the start made, too.
            if start is None and not done and workers.first:
                model.initialize(_batches(model, records, schedule.batch_size))
            model.started.assign(1)
            workers.start_alike(lasting_weights(model))
            fit_in_rounds(
                model,
                lambda step: _training_batches(model, records, schedule, step, seed, workers),
                out,
                schedule,
                callbacks=callbacks,
                progress=progress,
                verbose=verbose,
                patience=None if epochs else _PATIENCE * schedule.rounds_per_epoch,
                workers=workers,
            )
    except InputError:
        if workers.first:
            withdraw(out)
        raise
    if workers.first:
        seconds = time.perf_counter() - began
        finish(model, out, asked, schedule, seconds, genes=model.modality_inputs[0].n_inputs)
    with workers.naming_loss():
        workers.agree(0, "")  # nobody leaves before all is written
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


def check_arguments(
    *,
    method: str | None = None,
    preset: str | None = None,
    members: int = 1,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    optimizer: str = "adam",
    strategy: str = "auto",
    **others: Any,
) -> None:
    """Raises InputError if an argument of `train` is unsuitable, whatever the cells."""
    method = method or DEFAULT_METHOD
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}; choose one of {', '.join(METHODS)}")
    if preset is not None and preset not in METHODS[method].presets:
        known = ", ".join(METHODS[method].presets)
        raise InputError(f"{method} has no preset {preset!r}; it has {known}")
    for name, value in {
        "epochs": epochs,
        "batch size": batch_size,
        "learning rate": learning_rate,
    }.items():
        if value is None:
            continue
        if not isinstance(value, Real) or not 0 < value < math.inf:
            raise InputError(f"{name} is {value}; it must be positive")
        if name != "learning rate" and value != int(value):
            raise InputError(f"{name} is {value}; it must be a whole number")
    if not isinstance(members, int) or members < 1:
        raise InputError(f"members is {members}; it must be a whole number, 1 or more")
    if batch_size == 1:
        raise InputError("batch size is 1; a cell is contrasted with others, so at least 2")
    if strategy == MULTIWORKER:
        raise InputError("strategy multiworker is for `train` alone")
    if strategy not in STRATEGIES:
        known = ", ".join((*STRATEGIES, MULTIWORKER))
        raise InputError(f"there is no strategy {strategy!r}; choose one of {known}")
    make_optimizer(optimizer, 1e-3)


def _create(
    method: str,
    preset: str | None,
    members: int,
    genes: str | None,
    modalities: Sequence[str] | None,
    records: Records,
    seed: int,
    options: dict[str, Any],
) -> ContrastiveModel:
    cls = METHODS[method]
    unknown = set(options) - arguments_of(cls)
    if unknown:
        raise InputError(f"{method} has no option {min(unknown)!r}; see {cls.__name__}")
    looked_at = chosen_modalities(records, modalities, cls.looks_at_several)
    settled = cls.presets[preset or DEFAULT]
    chosen = resolve_genes(genes or settled.training.genes, records) if RNA in looked_at else None

    def create(**own: Any) -> ContrastiveModel:
        return cls.from_records(
            records,
            genes=chosen,
            modalities=looked_at,
            **{**settled.options, **own, **options},
        )

    if members == 1:
        return create(seed=seed)
    return Ensemble(
        [create(seed=(seed * members + i) % 2**32, name=f"member_{i}") for i in range(members)]
    )


def _continue(start: str | Path, records: Records) -> ContrastiveModel:
    model = load_model(start)
    check_agreement(model, records)
    if set(records.sources) <= set(model.sources):
        return model
    return model.with_sources(records.sources)


def _batches(
    model: ContrastiveModel, records: Records, batch_size: int, **shuffling: Any
) -> tf.data.Dataset:
    """Batches of the cells of records as a model trains on them."""
    return records.dataset(
        batch_size,
        genes=chosen_genes(model),
        sources=model.sources,
        packed=True,
        modalities=seen_modalities(model, records),
        **shuffling,
    )


def _training_batches(
    model: ContrastiveModel,
    records: Records,
    schedule: Schedule,
    step: int,
    seed: int,
    workers: Workers,
) -> tf.data.Dataset:
    """This worker's endless part of the batches from a step of the training on."""
    replicas = model.distribute_strategy.num_replicas_in_sync // workers.count
    size = schedule.batch_size // workers.count
    shard_of = (workers.index, workers.count)
    # A worker's own epoch may be a few batches longer than that of all.
    per_epoch = records.n_cells_of(*shard_of) // size
    data = _batches(
        model,
        records,
        size,
        shuffle=True,
        seed=seed,
        repeat=True,
        replicas=replicas,
        shard_of=shard_of,
        first_epoch=step // per_epoch,
    ).skip(step % per_epoch)
    # Where workers distribute batches themselves, each device is given one of its own.
    return data if workers.count == 1 or replicas == 1 else data.rebatch(size // replicas)


def _named_genes(genes: str | None) -> str | None:
    """The option, with a list of genes by its content: the file may change."""
    if genes is None or not as_path(genes).is_file():
        return genes
    return f"{genes} {_files.sha256(genes)}"
