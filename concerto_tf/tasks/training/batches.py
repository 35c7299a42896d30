"""The batches that a training sees, from any of its steps on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from concerto_tf.errors import InputError
from concerto_tf.models import ContrastiveModel
from concerto_tf.models.fitting.schedule import Schedule
from concerto_tf.records import Records
from concerto_tf.records.share import Share
from concerto_tf.tasks.io.agreement import cell_batches
from concerto_tf.tasks.training.arguments import FEWEST_CELLS
from concerto_tf.tasks.training.distribution import TrainingProcesses

if TYPE_CHECKING:
    import tensorflow as tf


def training_batches(
    model: ContrastiveModel,
    records: Records,
    schedule: Schedule,
    step: int,
    seed: int,
    workers: TrainingProcesses,
    held_out: int = 0,
) -> tf.data.Dataset:
    """This worker's endless part of the batches from a step of the training on.

    Args:
        model: What is trained.
        records: The cells.
        schedule: The plan of the training.
        step: The step that the first batch is for.
        seed: Seed of the order.
        workers: The processes that train together.
        held_out: One in so many cells is not trained on; 0 for none.
    """
    replicas = model.distribute_strategy.num_replicas_in_sync // workers.count
    size = schedule.batch_size // workers.count
    shard_of = Share(workers.index, workers.count, -held_out)
    # A worker's own epoch may be a few batches longer than that of all.
    per_epoch = records.n_cells_of(*shard_of) // size
    data = cell_batches(
        model,
        records,
        size,
        shuffle=True,
        seed=seed,
        repeat=True,
        packed=True,
        replicas=replicas,
        shard_of=shard_of,
        first_epoch=step // per_epoch,
    ).skip(step % per_epoch)
    # Where workers distribute batches themselves, each device is given one of its own.
    return data if workers.count == 1 or replicas == 1 else data.rebatch(size // replicas)


def validation_batches(
    model: ContrastiveModel, records: Records, schedule: Schedule, held_out: int
) -> tf.data.Dataset:
    """The cells that are held out, in minibatches as large as those of the training or smaller.

    Args:
        model: What is trained.
        records: The cells.
        schedule: The plan of the training.
        held_out: One in so many cells is held out.

    Raises:
        InputError: They are too few for their loss to say anything.
    """
    shard_of = Share(every=held_out)
    n_cells = records.n_cells_of(*shard_of)
    if n_cells < FEWEST_CELLS:
        raise InputError(
            f"{records.path}: a validation share of {n_cells} cells; at least {FEWEST_CELLS} are "
            "needed, so make it larger",
            "validation_share",
        )
    replicas = model.distribute_strategy.num_replicas_in_sync
    # What divides those of the training fits a queue of embeddings, too. Few cells are left over.
    sizes = [
        size
        for size in range(2, n_cells + 1)
        if schedule.batch_size % size == size % replicas == 0 and n_cells % size <= n_cells // 5
    ]
    size = max(sizes, default=n_cells // replicas * replicas)
    return cell_batches(
        model,
        records,
        size,
        packed=True,
        replicas=replicas,
        shard_of=shard_of,
        drop_remainder=True,
    )
