"""Training a model on records: what to look at, how long, on which devices; resumable."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concerto_tf._calls import checked
from concerto_tf._identity import identity_of_file, identity_of_records
from concerto_tf._paths import as_path
from concerto_tf._progress import stage
from concerto_tf.errors import Argument, InputError
from concerto_tf.jobs import Job
from concerto_tf.models import ContrastiveModel, Ensemble, load_model
from concerto_tf.models.fitting.schedule import plan_training
from concerto_tf.models.methods import method as find_method
from concerto_tf.models.modality import chosen_modalities
from concerto_tf.models.objects import anew, identity_of, plain
from concerto_tf.models.presets import DEFAULT, Training
from concerto_tf.models.saving import check_saving, copied, model_file
from concerto_tf.models.weights import lasting_weights
from concerto_tf.records import Records, resolve_genes
from concerto_tf.records.batch import RNA
from concerto_tf.records.share import Share
from concerto_tf.tasks.io.agreement import cell_batches, check_agreement
from concerto_tf.tasks.training.arguments import DEFAULT_METHOD, check_arguments, check_cells
from concerto_tf.tasks.training.batches import training_batches, validation_batches
from concerto_tf.tasks.training.callbacks import saved_rounds, take_best
from concerto_tf.tasks.training.distribution import (
    MULTIWORKER,
    TrainingProcesses,
    make_strategy,
)
from concerto_tf.tasks.training.job import LAYOUT, finish_training, fit_in_rounds

_log = logging.getLogger("concerto_tf")
#: Rounds without a smaller loss that end a training; a falling loss keeps it going.
_PATIENCE = 10


@checked
def train(
    records: Records | str | Path,
    out: str | Path,
    *,
    method: str | None = None,
    preset: str | None = None,
    ensemble: int | None = None,
    genes: str | None = None,
    modalities: Sequence[str] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    optimizer: str | None = None,
    strategy: str = "auto",
    validation_share: float | None = None,
    patience: int | None = None,
    start: str | Path | None = None,
    model: ContrastiveModel | None = None,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
    progress: Callable[[int, int], None] | None = None,
) -> ContrastiveModel:
    """Trains a model and leaves it in a folder; called again after a stop, it continues.

    The folder holds ``model.keras``, ``training.csv`` and ``tensorboard/`` (loss, alignment,
    uniformity, effective rank, cells per second by round; not where nothing was to be trained),
    and ``training.json`` (what was asked for, the passes over the cells as ``epochs``, and how long
    it took). While training it also holds ``checkpoint/``.

    Args:
        records: Finished records, or their folder.
        out: Folder of the model.
        method: ``concerto`` (the default), ``clear``, ``contrastive-sc``, ``cicl``, or one that
            another package adds (`concerto_tf.models.register_method`).
        preset: ``paper`` for the values printed in the method's paper, ``authors`` for those of
            the authors' program (``presets`` of the model's class); ``None`` for what embeds best.
        ensemble: Number of networks with seeds of their own that the model joins (`Ensemble`); by
            default one, unless the preset says otherwise.
        genes: ``all``, ``hvg:N`` or a file with one gene per line; by default ``hvg:5000``.
        modalities: Names of the modalities to look at; by default all that the records hold. The
            methods other than ``concerto`` look at one: by default rna, or the only one.
        epochs: Passes over the cells; ``None`` follows from their number, and is 0 for a new
            ``concerto``, whose PCA initialization training does not improve.
        batch_size: Cells per minibatch over all devices.
        learning_rate: Learning rate; given one, a model is trained whatever it is.
        optimizer: ``adam`` (unless the preset says otherwise), ``adamw``, ``lamb``, ``lazyadam``,
            ``momentum`` (SGD with one of 0.9) or ``sgd``.
        strategy: ``one`` device, ``mirrored`` over all GPUs of this machine, or ``auto``:
            mirrored where there are several. ``multiworker``: this call is one of several alike,
            in processes that ``TF_CONFIG`` names and that see the same folders; each reads its
            own shards, and the first of them writes.
        validation_share: Share of the cells, at most .5, that is not trained on: one in
            round(1 / share). Once their loss has not fallen for ``patience`` rounds the training
            ends, and the model has the weights of its smallest value.
        patience: Rounds (lines of ``training.csv``) to wait for a smaller loss on these; 10.
        start: A model to continue from, on the same or on other cells of the same genes.
        model: A model to train, made by `from_records` or of the same genes. It stays as it is;
            a new one with its configuration and weights is trained. Called again to continue, it
            takes a model of the same configuration.
        seed: Seed of weights, order and views.
        options: Further arguments of the model's class, before those of the preset. Keras layers,
            losses and the like are made anew from their configuration, for each network.
        callbacks: Further Keras callbacks.
        progress: Called with the number of cells seen and to be seen.

    Returns:
        The trained model.

    Raises:
        InputError: The records are too small, do not fit ``start``, or an argument is unsuitable;
            or the folder holds a model that other arguments made.
        Interrupted: Another worker ended; the same call on all of them continues.
    """
    records = records if isinstance(records, Records) else Records(records)
    request = _Request(
        method=method or DEFAULT_METHOD,
        preset=preset,
        ensemble=ensemble,
        genes=genes,
        modalities=modalities if modalities is None else list(modalities),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=optimizer,
        validation_share=validation_share,
        patience=patience,
        start=start,
        model=model,
        seed=seed,
        options=options or {},
    )
    scope = make_strategy(strategy) if strategy == MULTIWORKER else None
    workers = TrainingProcesses(scope)
    with Job(out, request.asked(records), LAYOUT, writes=workers.first) as job:
        done = -1 if job.finished else saved_rounds(job.out / "checkpoint")
        with workers.naming_loss():
            workers.agree(
                done, f"{out}: not all workers see the same there; name a folder that they share"
            )
        if job.finished:
            return load_model(model_file(job.out))
        request.check("one" if strategy == MULTIWORKER else strategy)
        if validation_share is not None and workers.count > 1:
            raise InputError(
                "a validation share is for trainings on one machine; leave it out",
                "validation_share",
            )
        settled: dict[str, Any] = {"method": method, "preset": preset, "genes": genes}
        settled |= {"options": options or None, "ensemble": ensemble}
        settled |= {} if model is None else {"modalities": modalities, "start": start}
        given = [name for name, value in settled.items() if value is not None]
        if (start is not None or model is not None) and given:
            raise InputError(
                f"{start or 'the model'}: has been made with its own {' and '.join(given)}; leave "
                "that out, or the model"
            )
        check_cells(
            str(records.path),
            records.n_cells,
            records.n_genes,
            dict(zip(records.sources, records.manifest.cells_per_source, strict=True)),
        )
        scope = scope or make_strategy(strategy)
        how = {"callbacks": callbacks, "progress": progress}
        return _train(job, request, records, scope, workers, **how)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What to train, and how: the arguments of `train` that a model follows from."""

    method: str
    preset: str | None
    ensemble: int | None
    genes: str | None
    modalities: Sequence[str] | None
    epochs: int | None
    batch_size: int | None
    learning_rate: float | None
    optimizer: str | None
    validation_share: float | None
    patience: int | None
    start: str | Path | None
    model: ContrastiveModel | None
    seed: int
    options: Mapping[str, Any]

    def asked(self, records: Records) -> dict[str, Any]:
        """All of it as a job keeps it: files that may change by their content."""
        files = {
            name: identity_of_file(path)
            for name, path in {
                "genes": self.genes,
                "start": self.start and model_file(self.start),
            }.items()
            if path and as_path(path).is_file()
        }
        own = {**vars(self), **files, "options": plain(self.options)}
        given = own.pop("model")
        told = {} if given is None else {"model": identity_of(given)}
        return {**own, **told, "records": identity_of_records(records)}

    def check(self, strategy: str) -> None:
        """Raises InputError if something is unsuitable, whatever the cells."""
        check_arguments(**{**vars(self), "strategy": strategy})

    def leaves_it_to(self, model: ContrastiveModel) -> bool:
        """Whether nothing asks for training, and the model is new and does not need any."""
        asked = (self.start, self.epochs, self.learning_rate, self.validation_share)
        new = not int(model.started.numpy())
        return new and all(given is None for given in asked) and not model.needs_training

    @property
    def held_out(self) -> int:
        """One in so many cells is held out; 0 for none."""
        return 0 if self.validation_share is None else round(1 / self.validation_share)

    @property
    def training(self) -> Training | None:
        """What the preset says of training; None where a model that is given says it."""
        if self.start is not None or self.model is not None:
            return None
        return find_method(self.method).presets[self.preset or DEFAULT].training


def _train(
    job: Job,
    request: _Request,
    records: Records,
    scope: Any,
    workers: TrainingProcesses,
    **how: Any,
) -> ContrastiveModel:
    """Makes the model, trains it round by round and leaves it in the job's folder."""
    # No worker has less to read than this in an epoch; what others have more waits for the next.
    held_out, count = request.held_out, workers.count
    shares = [records.n_cells_of(index, count, -held_out) for index in range(count)]
    n_cells = workers.count * min(shares)
    replicas = scope.num_replicas_in_sync if scope else 1
    began = time.perf_counter()
    with workers.naming_loss(), scope.scope() if scope else nullcontext():
        model = _model(request, records)
        training = request.training or model.recipe
        epochs = request.epochs or training.epochs
        if request.leaves_it_to(model):
            epochs = 0
            _log.info(
                "no training: it does not improve on the PCA initialization (%s trains all the "
                "same)",
                Argument("epochs", "N"),
            )
        schedule = plan_training(
            n_cells,
            epochs,
            request.batch_size or training.batch_size,
            replicas,
            model.recipe.most_epochs,
        )
        model = model.for_batches(schedule.batch_size)
        model.compile(
            request.optimizer or training.optimizer,
            request.learning_rate or training.learning_rate,
            schedule.steps if training.cosine else None,
            warmup=0.0,
        )
    if workers.first:
        check_saving(model)
    if request.batch_size is not None and schedule.batch_size != request.batch_size:
        _log.warning(
            "%s: minibatches of %d cells instead of %d, for its %d cells",
            records.path,
            schedule.batch_size,
            request.batch_size,
            records.n_cells,
        )
    found: dict[str, Any] = {}
    validation = patience = None
    if held_out:
        validation = validation_batches(model, records, schedule, held_out)
        patience = request.patience or _PATIENCE
    elif not epochs:
        patience = _PATIENCE * schedule.rounds_per_epoch
    resumed = schedule.rounds > 0 and saved_rounds(job.out / "checkpoint") > 0
    job.begin()
    with records.naming_damage(), workers.naming_loss():
        # A checkpoint holds what the PCA initialization made, too.
        if not model.started.numpy() and not resumed and workers.first:
            cells = cell_batches(
                model,
                records,
                schedule.batch_size,
                packed=True,
                shard_of=Share(every=-held_out),
            )
            with stage("statistics and PCA initialization"):
                model.initialize(cells)
                if not schedule.rounds:  # training finds the statistics of sources otherwise
                    model.calibrate(cells)
        model.started.assign(1)
        workers.start_alike(lasting_weights(model))
        if schedule.rounds:
            fit_in_rounds(
                model,
                lambda step: training_batches(
                    model, records, schedule, step, request.seed, workers, held_out
                ),
                job.out,
                schedule,
                patience=patience,
                validation=validation,
                workers=workers,
                **how,
            )
        if validation is not None:
            rounds, loss = take_best(model, job.out / "checkpoint")
            found["validation"] = {
                "cells": records.n_cells_of(*Share(every=held_out)),
                "loss": loss,
                "epochs": round(schedule.passes(rounds), 2),
            }
    if workers.first:
        found["genes"] = model.modality_inputs[0].n_inputs
        seconds = time.perf_counter() - began
        finish_training(job, model, schedule, seconds, records, **found)
    with workers.naming_loss():
        workers.agree(0, "")  # nobody leaves before all is written
    return model


def _model(request: _Request, records: Records) -> ContrastiveModel:
    """A new model, one that is continued, or a copy of the one that is given."""
    if request.model is not None:
        model = copied(request.model)
    elif request.start is not None:
        model = load_model(request.start)
    else:
        return _create(request, records)
    check_agreement(model, records)
    if set(records.sources) <= set(model.sources):
        return model
    return model.with_sources(records.sources)


def _create(request: _Request, records: Records) -> ContrastiveModel:
    cls, options = find_method(request.method), request.options
    looked_at = chosen_modalities(records, request.modalities, cls.looks_at_several)
    settled = cls.presets[request.preset or DEFAULT]
    size = request.ensemble or settled.training.ensemble
    wanted = settled.training.genes if request.genes is None else request.genes
    chosen = resolve_genes(wanted, records) if RNA in looked_at else None

    def create(**own: Any) -> ContrastiveModel:
        arguments = {**settled.options, **own, **options}
        return cls.from_records(records, genes=chosen, modalities=looked_at, **anew(arguments))

    if size == 1:
        return create(seed=request.seed)
    seeds = [(request.seed * size + i) % 2**32 for i in range(size)]
    return Ensemble([create(seed=seed, name=f"member_{i}") for i, seed in enumerate(seeds)])
