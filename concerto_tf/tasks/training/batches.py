"""The batches that a training sees, from any of its steps on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from concerto_tf.models import ContrastiveModel
from concerto_tf.models.fitting.schedule import Schedule
from concerto_tf.records import Records
from concerto_tf.tasks.io.agreement import cell_batches
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
) -> tf.data.Dataset:
    """This worker's endless part of the batches from a step of the training on.

    Args:
        model: What is trained.
        records: The cells.
        schedule: The plan of the training.
        step: The step that the first batch is for.
        seed: Seed of the order.
        workers: The processes that train together.
    """
    replicas = model.distribute_strategy.num_replicas_in_sync // workers.count
    size = schedule.batch_size // workers.count
    shard_of = (workers.index, workers.count)
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
