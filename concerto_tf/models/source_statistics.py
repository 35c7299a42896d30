"""Statistics of sources in a model: found from cells, carried over to another model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import layers_within
from concerto_tf.layers import SourceBatchNormalization
from concerto_tf.records.batch import Batch, Minibatch

#: Batches that are looked at; more change the statistics by noise only.
_BATCHES = 128


def _source_layers(model: Any) -> list[SourceBatchNormalization]:
    """The source-aware layers of a model, in the order in which it was built."""
    layers = layers_within(model, recursive=True)
    return [layer for layer in layers if isinstance(layer, SourceBatchNormalization)]


@contextmanager
def unchanged(model: Any, except_for: Sequence[Any] = ()) -> Iterator[None]:
    """Restores what is not trained (counters, statistics, queues) at the end of the block.

    Args:
        model: A model.
        except_for: Layers that keep their changes, as the model's metrics do.
    """
    free = {id(w) for part in (*model.metrics, *except_for) for w in part.variables}
    state = [w for w in model.non_trainable_weights if id(w) not in free]
    before = [tf.identity(w) for w in state]
    try:
        yield
    finally:
        for weight, value in zip(state, before, strict=True):
            weight.assign(value)


def deviations(layer: SourceBatchNormalization) -> np.ndarray:
    """Standard deviations [F] of what a layer normalizes, over all its sources."""
    count, _, variance = (np.array(moment, np.float64) for moment in layer.moving_moments)
    share = count / max(count.sum(), 1.0)
    return np.sqrt(share @ variance + layer.epsilon)


def calibrate_sources(model: Any, data: Iterable[Batch]) -> None:
    """Sets the statistics of a model's source-aware layers: see `ContrastiveModel.calibrate`."""
    layers = _source_layers(model)
    before = [layer.moving_moments for layer in layers]
    for layer in layers:
        layer.moving_count.assign(tf.zeros_like(layer.moving_count))
    views = tf.autograph.experimental.do_not_convert(model.views)  # it takes seconds to rewrite
    look = tf.function(views, reduce_retracing=True)
    with unchanged(model, except_for=layers):
        for batch in itertools.islice(data, _BATCHES):
            look(Minibatch(batch).numeric)
    for layer, old in zip(layers, before, strict=True):
        found = layer.moving_moments
        enough = found[0] >= layer.min_cells
        for weight, new, kept in zip(layer.moving_weights, found, old, strict=True):
            mask = tf.reshape(enough, [-1, *[1] * (len(new.shape) - 1)])
            weight.assign(tf.where(mask, new, kept))


def carry_over(old: Any, new: Any) -> None:
    """Gives a model the weights of one that differs from it in its sources only.

    A source that both have keeps its statistics, factors and offsets.

    Args:
        old: The model that has the weights.
        new: The model that gets them.
    """
    of_sources = {id(w) for layer in _source_layers(new) for w in layer.non_trainable_weights}
    for have, get in zip(old.weights, new.weights, strict=True):
        if id(get) not in of_sources:
            get.assign(have)
    rows = [old.sources.index(name) if name in old.sources else -1 for name in new.sources]
    for have, get in zip(_source_layers(old), _source_layers(new), strict=True):
        get.take_sources(have, rows)
