"""What a classifier notes: the measure of each type, and how like it held-out cells are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow as tf

from concerto_tf.models.batch_model import compiled
from concerto_tf.models.batches import in_order
from concerto_tf.models.classifier.left_out import own_type_left_out
from concerto_tf.models.classifier.linear import labelled_cells, labelled_parts
from concerto_tf.models.classifier.network import Classifier
from concerto_tf.models.classifier.stated import MOST_LEARNED, stated_novelty
from concerto_tf.models.classifier.type_distance import COMPONENTS, measured_types, type_novelty
from concerto_tf.novelty import (
    calibrated_on_all,
    mean_together,
    novelty_together,
    scale_by_type,
    steps_below,
)
from concerto_tf.numerics.prediction_sets import of_truth
from concerto_tf.records.batch import ROW, Batch, Minibatch

#: Components in which types are compared, the first of these that the cells are enough for.
_COMPONENTS = (COMPONENTS, 30, 20, 10)
#: Share of known cells lost at which that is judged.
_ALPHA = 0.05


def learn_types(model: Classifier, data: Iterable[Batch], components: int = COMPONENTS) -> None:
    """Takes the measure of each type, for cells to be compared with.

    Neither embedding nor probabilities are looked at, but the values themselves: of cells that
    pre-training has seen the embedding is farther from everything than of new cells, and a
    calibration on it would mislead.

    Args:
        model: The classifier, which notes it.
        data: Batches in random order, to be read twice, of the labelled cells that may be learned
            from; others have label -1.
        components: Number of principal components in which types are compared.
    """
    look = tf.function(lambda batch: [model.standardized(batch)], reduce_retracing=True)

    def cells() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        parts = labelled_parts(model, data, look)
        return ((y, label) for (y,), label, _ in parts)

    found = measured_types(cells, len(model.classes), model.seed, components)
    for weight, value in zip(
        (model.type_axes, model.type_mean, model.type_directions), found, strict=True
    ):
        weight.assign(value)


def _left_out(
    model: Classifier, data: Iterable[Batch], found: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What is said of held-out cells whose own types are taken as unknown, and their types."""
    y, label = _labelled_values(model, data)
    measure = [np.array(w) for w in (model.type_axes, model.type_mean, model.type_directions)]
    return own_type_left_out(found, y, label, measure), label


def _labelled_values(model: Classifier, data: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Standardized values [n, F] and types [n] of the labelled cells, in the order of the input."""
    (y,), label = labelled_cells(model, data, lambda batch: [model.standardized(batch)])
    return y, label


def calibrate(
    model: Classifier,
    data: Iterable[Batch],
    step: Callable[[Batch], dict[str, tf.Tensor]] | None = None,
) -> dict[str, np.ndarray]:
    """Notes how much held-out cells are like the known cell types, to compare others with.

    Args:
        model: The classifier, which notes it.
        data: Batches; labelled cells in them (0 or more) are the held-out ones, of which nothing
            was learned. Without any, confidence stays the probability.
        step: `Classifier.scored`, compiled already.

    Returns:
        What `Classifier.scored` gives, for all cells, and of held-out ones what `annotate` does.
    """
    labels: list[tuple[np.ndarray, np.ndarray]] = []

    def noted() -> Iterator[Batch]:
        for i, batch in enumerate(data):
            label = np.array(Minibatch(batch).label(model.label_key))
            row = np.array(batch[ROW]) if ROW in batch else np.full(len(label), i)
            labels.append((label[row >= 0], row[row >= 0]))
            yield batch

    found = in_order(step or compiled(model.scored), noted())
    label, row = (np.concatenate(parts) for parts in zip(*labels, strict=True))
    label = label[np.argsort(row, kind="stable")]
    held_out = label >= 0
    if held_out.any():
        scores, code = found["scores"][held_out], found["code"][held_out]
        scale = scale_by_type(scores, code, len(model.classes))
        found["score"] = type_novelty(found["scores"], found["code"], scale, ((), ()))[0].numpy()
        known, directions = np.sort(found["score"][held_out], axis=0).T.tolist()
        p_value = type_novelty(scores, code, scale, (known, directions))[1].numpy()
        together = mean_together(p_value, found["embedding"][held_out])
        found["novelty"] = np.ones(len(label), np.float32)
        found["novelty"][held_out] = novelty_together(
            p_value, found["embedding"][held_out], calibrated_on_all(together)
        )
        against = of_truth(found["probabilities"][held_out], label[held_out])
        model.note_known(scale, known, directions, np.sort(together), np.sort(against))
        if model.coarse is not None:
            own = {key: value[held_out] for key, value in found.items()}
            left_out, types = _left_out(model, data, own)
            model.coarse = model.coarse.calibrated(own, left_out, types)
    else:
        model.note_known()
    return found


def measure_types(
    model: Classifier,
    batches: Callable[[np.ndarray], Iterable[Batch]],
    codes: np.ndarray,
    held_out: np.ndarray,
) -> dict[str, np.ndarray]:
    """Takes the measure of each type, in as many components as the cells are enough for.

    Args:
        model: The classifier, which notes it (`learn_types`, `calibrate`).
        batches: Gives batches of all cells, with labels of those asked for, bool [n].
        codes: Type of each cell [n]; negative without one.
        held_out: Which cells were held out of training, bool [n].

    Returns:
        As `calibrate`.
    """
    learned = ~held_out & (codes >= 0)
    found: dict[str, np.ndarray] = {}
    step = compiled(model.scored)  # which looks up what is learned anew
    for components in _COMPONENTS:
        learn_types(model, batches(learned), components)
        found = calibrate(model, batches(held_out), step)
        below = steps_below(_ALPHA, len(model.calibration))
        # Components of few cells hold much of their noise: the very cells they were fitted on then
        # look stranger than new ones, and would be rejected when annotated themselves.
        if (
            not below
            or np.mean(found["score"][learned, 0] < model.calibration[below - 1]) < 2 * _ALPHA
        ):
            break
    return found


def state_novelty(
    model: Classifier,
    batches: Callable[[np.ndarray], Iterable[Batch]],
    codes: np.ndarray,
    held_out: np.ndarray,
    found: dict[str, np.ndarray],
) -> None:
    """Notes what is to be expected of other cells, known ones and of a new type.

    Args:
        model: The classifier, which notes it (`stated_novelty`).
        batches, codes, held_out: As for `measure_types`.
        found: What that gave.
    """
    if not held_out.any():
        return
    learned = np.flatnonzero(~held_out & (codes >= 0))
    some = np.random.default_rng(model.seed).permutation(learned)[:MOST_LEARNED]
    model.stated = stated_novelty(
        {name: of[held_out] for name, of in found.items()},
        _labelled_values(model, batches(held_out)),
        _labelled_values(model, batches(np.isin(np.arange(len(codes)), some))),
        model.classes,
        int((np.array(model.type_axes) != 0).any(axis=0).sum()),
        model.seed,
    )
