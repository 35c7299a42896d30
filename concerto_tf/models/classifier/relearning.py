"""Cell types told anew from a classifier's exemplars, seen as a query was measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf.models.classifier.calibration import measure_types
from concerto_tf.models.classifier.exemplars import Exemplars, Labelled
from concerto_tf.models.classifier.linear import learn_linear
from concerto_tf.models.classifier.network import Classifier
from concerto_tf.models.encoder import Teachable
from concerto_tf.numerics.readout import OTHERWISE
from concerto_tf.records.batch import Batch


class Relearned(Classifier):
    """A classifier whose types were learned anew from the genes, which alone tell them.

    It is for one query, and not saved.

    Args:
        encoder: The encoder, with the statistics of cells that were measured like the query.
        like: The classifier that has the exemplars.

    Attributes:
        seen: Minibatches of the exemplars as the query shows them.
        shift: How far cells are taken to lie off, in standardized values [F]; see `move`.
    """

    def __init__(self, encoder: Teachable, like: Classifier, seen: list[Batch]) -> None:
        super().__init__(
            encoder,
            like.classes,
            label_key=like.label_key,
            coarse=like.coarse,
            seed=like.seed,
        )
        self.seen = seen
        self.shift = np.zeros(self.head.n_inputs, np.float32)

    def move(self, shift: np.ndarray) -> None:
        """Takes cells to lie off by a shift of the standardized values [F]."""
        self.shift = shift.astype(np.float32)
        self.forget_steps()

    def standardized(self, batch: Batch) -> tf.Tensor:
        return super().standardized(batch) - self.shift

    def log_probabilities(self, batch: Batch, y: tf.Tensor) -> tf.Tensor:
        return self.head.of_genes(y)


def with_encoder(model: Classifier, encoder: Any) -> Classifier:
    """A classifier that says the same of what another encoder sees.

    Args:
        model: The classifier; it is left as it is.
        encoder: Its encoder, but for what it knows of sources.
    """
    new: Classifier
    if isinstance(model, Relearned):
        new = Relearned(encoder, model, model.seen)
        new.shift = model.shift
    else:
        new = Classifier(encoder, model.classes, label_key=model.label_key, seed=model.seed)
    for mine, its in zip(model.own_weights().values(), new.own_weights().values(), strict=True):
        its.assign(mine)
    new.coarse, new.stated = model.coarse, model.stated
    new.note_known(None, model.calibration, model.directions, model.together, model.nonconformity)
    return new


def relearned(model: Classifier, exemplars: Exemplars, seen: Iterable[Batch]) -> Relearned:
    """A classifier for cells that were measured otherwise.

    Args:
        model: A classifier; it is left as it is.
        exemplars: Labelled cells that it keeps.
        seen: Minibatches of them, as the query would show them.

    Returns:
        A classifier that learned types and calibration from what is seen of the exemplars.
    """
    batches = list(seen)
    encoder = model.encoder.with_sources(model.encoder.sources)
    encoder.calibrate(batches)
    new = Relearned(encoder, model, batches)
    learned = ~exemplars.held_out
    count = np.bincount(exemplars.label[learned], minlength=len(model.classes))
    new.balance(count)

    def labelled(cells: np.ndarray) -> Labelled:
        return Labelled(batches, model.label_key, np.where(cells, exemplars.label, -1))

    learn_linear(new, labelled(learned), count, prior=OTHERWISE)
    measure_types(new, labelled, exemplars.label, exemplars.held_out)
    return new
