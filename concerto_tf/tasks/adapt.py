"""A model adapted to a query without labels: by training further, or by its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from concerto_tf.errors import InputError
from concerto_tf.models import ContrastiveModel
from concerto_tf.models.encoder import Encoder, SourceAware
from concerto_tf.models.fitting.schedule import plan_training
from concerto_tf.records import CellSet, Records
from concerto_tf.tasks.embed import Progress
from concerto_tf.tasks.io.agreement import cell_batches

if TYPE_CHECKING:
    import tensorflow as tf

#: Steps of fine-tuning at least, where one pass over the cells is shorter.
_FINETUNE_STEPS = 60
#: More than trains a new model, which starts close to where it ends; other cells may be far.
_LEARNING_RATE = 1e-3


def trained_further(
    model: Encoder, records: Sequence[Records], seed: int = 0, progress: Progress | None = None
) -> ContrastiveModel:
    """The model after further contrastive training on other cells, without labels.

    Args:
        model: A trained model; it is left as it is.
        records: The query, and the reference too for a joint analysis.
        seed: Seed of the order.
        progress: Called with the number of cells seen and to be seen.

    Returns:
        A new model that knows the sources of all these cells.
    """
    from concerto_tf.tasks.training.callbacks import StopOnNaN, TrainingProgress

    if not isinstance(model, ContrastiveModel):
        raise InputError(
            f"a {type(model).__name__} cannot be trained further; map without finetune"
        )
    sources = dict.fromkeys([*model.sources, *(name for of in records for name in of.sources)])
    adapted = model.with_sources(list(sources))
    cells = sum(of.n_cells for of in records)
    batch_size = min(plan_training(cells).batch_size, *(of.n_cells for of in records))
    if batch_size < 2:
        raise InputError("fine-tuning compares cells, and there is only one; map it without")
    # The paper's one pass, or on small data the few steps that one pass falls short of.
    epochs = -(-_FINETUNE_STEPS * batch_size // cells)
    schedule = plan_training(cells, epochs, batch_size)
    adapted.compile("adam", _LEARNING_RATE)
    adapted.fit(
        _mixed(
            [
                cell_batches(
                    adapted, of, batch_size, shuffle=True, seed=seed, repeat=True, packed=True
                )
                for of in records
            ],
            [of.n_cells / cells for of in records],
            seed,
        ),
        epochs=schedule.rounds,
        steps_per_epoch=schedule.steps_per_round,
        verbose=0,
        callbacks=[TrainingProgress(schedule, progress), StopOnNaN()],
    )
    return adapted


def _mixed(parts: list[tf.data.Dataset], weights: list[float], seed: int) -> tf.data.Dataset:
    """Batches of one data set or another, in proportion to their cells."""
    import tensorflow as tf

    if len(parts) == 1:
        return parts[0]
    return tf.data.Dataset.sample_from_datasets(
        parts, weights, seed=seed, rerandomize_each_iteration=False
    )


def with_own_statistics(model: Encoder, records: CellSet) -> SourceAware:
    """The model with the statistics of a query's own sources ("batch-aware inference").

    Args:
        model: A trained model; it is left as it is.
        records: The query, the first minibatches a random sample of it.

    Returns:
        A new model that knows the query's sources alone.
    """
    if not isinstance(model, SourceAware):
        raise InputError(
            f"a {type(model).__name__} has no statistics of sources; choose another adaptation",
            "adapt",
        )
    own = model.with_sources(records.sources)
    own.calibrate(cell_batches(own, records, packed=True))
    return own
