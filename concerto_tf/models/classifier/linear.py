"""What embedding and genes say of cell types: logistic regression beside the networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from concerto_tf.models.encoder import geometry_of
from concerto_tf.numerics.readout import ALIKE, EXPECTED, Lesson, Prior, source_parts, weigh
from concerto_tf.numerics.spread import as_unseen
from concerto_tf.records.batch import ROW, Batch, Minibatch

if TYPE_CHECKING:
    from concerto_tf.models.classifier.network import Classifier


def _look(model: Classifier, batch: Batch) -> tuple[tf.Tensor, ...]:
    """Embeddings, values and sources of cells."""
    z = tf.cast(model.encoder(batch, training=False), tf.float32)
    return z, model.standardized(batch), Minibatch(batch).source


def learn_linear(
    model: Classifier,
    data: Iterable[Batch],
    known: np.ndarray,
    prior: Prior = ALIKE,
    share: float = 1.0,
    held_out_next: bool = False,
) -> Lesson:
    """Teaches embedding and genes the types.

    Args:
        model: The classifier, which notes it.
        data: Batches, of which labelled cells are learned from; see `chosen_to_learn`.
        known: Number of cells of each type that there are to learn from [C]; ``data`` may have a
            part of them.
        prior: How far from 0 the weights of genes may be.
        share: As in `fit_genes`.
        held_out_next: Whether cells that were held out of these are told next, whose embeddings
            spread as those of cells do that the encoder was trained on; otherwise new ones.

    Returns:
        What was learned from, for `weigh_voices`.
    """
    (z, y, source), label = labelled_cells(model, data, lambda batch: _look(model, batch))
    stands_for = known / np.maximum(np.bincount(label, minlength=len(known)), 1)
    weight = (np.array(model.class_weight) * stands_for)[label]
    (middle, spread), width = geometry_of(model.encoder), model.encoder.deviations
    factor = np.ones_like(middle) if spread is None else as_unseen(z - middle, spread)
    cells = (z - middle) * factor, y, source, label, weight / weight.mean(), width
    lesson = Lesson(*cells, len(known), prior, factor)
    (units, of_units), (genes, of_genes) = lesson.learn(share=share)
    if held_out_next:
        units = units * factor[:, np.newaxis]
    model.head.units.kernel.assign(units)
    model.head.units.bias.assign(of_units - middle @ units)
    model.head.genes.kernel.assign(genes)
    model.head.genes.bias.assign(of_genes)
    return lesson


def weigh_voices(
    model: Classifier, lesson: Lesson, held_out: Iterable[Batch] | None = None
) -> None:
    """Finds how much networks, embedding and genes are to count.

    Where the networks have learned nothing, the cells of the lesson tell: they are left out in
    turn, source by source where there are several, as within sources that it knows logistic
    regression is better than it will be in the next one. Networks are not trained anew for that:
    beside them cells tell that no voice has learned. With several sources networks are judged on
    sources that they know, and so count more.

    Args:
        model: The classifier, which notes it.
        lesson: What `learn_linear` gave.
        held_out: Batches, of which labelled cells were learned by no voice; None where the
            networks have learned nothing.
    """
    if held_out is None:
        told = lesson.by_others()
        answers, truth = list((told.said + told.bias)[:, told.judged]), lesson.label[told.judged]
    else:
        answers, truth = _beside(model, lesson, held_out)
    silent = len(EXPECTED) - len(answers)
    model.head.voices.assign([0.0] * silent + list(weigh(answers, truth, EXPECTED[silent:])))


def _beside(
    model: Classifier, lesson: Lesson, held_out: Iterable[Batch]
) -> tuple[list[np.ndarray], np.ndarray]:
    """What networks, embedding and genes say of held-out cells [n, C], and their types."""

    def voices(batch: Batch) -> tuple[tf.Tensor, ...]:
        hidden = model.encoder.represent(batch, training=False)
        return model.head.of_networks(*hidden), *_look(model, batch)

    said, truth = labelled_cells(model, held_out, voices)
    if not len(truth):
        return [np.zeros((0, lesson.n_types))] * len(EXPECTED), truth
    networks, z, y, source = said
    inputs = (z - geometry_of(model.encoder).origin) * lesson.factor, y
    told = [x @ kernel + bias for x, (kernel, bias) in zip(inputs, lesson.learn(), strict=True)]
    judged = np.ones(len(truth), bool)
    for part in source_parts(lesson.source):
        rest, own = ~np.isin(lesson.source, part), np.isin(source, part)
        others = np.unique(lesson.label[rest])
        judged[own] = np.isin(truth[own], others) & (len(others) > 1)
        if judged[own].any():
            for answer, x, (kernel, bias) in zip(told, inputs, lesson.learn(rest), strict=True):
                answer[own] = x[own] @ kernel + bias
    return [answer[judged] for answer in (networks, *told)], truth[judged]


def labelled_parts(
    model: Classifier, data: Iterable[Batch], look: Callable[[Batch], Sequence[tf.Tensor]]
) -> Iterator[tuple[list[np.ndarray], np.ndarray, np.ndarray]]:
    """What is seen of the labelled cells, part by part.

    Args:
        model: The classifier.
        data: Batches with labels; cells without one have -1.
        look: Gives tensors [B, ...] of a batch, compiled.

    Yields:
        The tensors of the labelled cells as arrays, their labels and their rows.
    """
    for i, batch in enumerate(data):
        label = np.array(Minibatch(batch).label(model.label_key))
        row = np.array(batch[ROW]) if ROW in batch else np.full(len(label), i)
        own = label >= 0
        if own.any():
            seen = [x.numpy()[own] for x in look(Minibatch(batch).numeric)]
            yield seen, label[own], row[own]


def labelled_cells(
    model: Classifier, data: Iterable[Batch], look: Callable[[Batch], Sequence[tf.Tensor]]
) -> tuple[list[np.ndarray], np.ndarray]:
    """What is seen of all labelled cells, and their types [n], in the order of the input.

    Args:
        model, data: As for `labelled_parts`.
        look: Gives tensors [B, ...] of a batch.
    """
    compiled = tf.function(look, reduce_retracing=True)
    parts = list(labelled_parts(model, data, compiled))
    if not parts:
        return [], np.empty(0, np.int32)
    seen, label, row = zip(*parts, strict=True)
    order = np.argsort(np.concatenate(row), kind="stable")
    whole = [np.concatenate(arrays)[order] for arrays in zip(*seen, strict=True)]
    return whole, np.concatenate(label)[order]
