"""Weights in a saved model by name.

Keras numbers the layers of a model by class and attribute when it saves them, otherwise in each
of its versions; a further layer shifts the numbers. Under names of our own, every Keras and every
later version finds the weights of an older file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, MutableMapping
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import layers_within
from concerto_tf.models.batch_model import BatchModel
from concerto_tf.models.objects import is_automatic


def keep_together(parts: Iterable[Any]) -> None:
    """Lets the model save the weights of its layers and metrics, instead of these themselves."""
    for part in parts:
        part.save_own_variables = part.load_own_variables = _nothing
        keep_together(_sublayers(part))


def save_weights(model: Any, store: MutableMapping[str, Any]) -> None:
    """Puts all weights of a model into Keras' store; see `Layer.save_own_variables`."""
    if isinstance(model, BatchModel):
        keep_together([*model.layers, *model.metrics])
    for name, weight in _named(model).items():
        store[name] = np.array(tf.convert_to_tensor(weight))


def load_weights(model: Any, store: MutableMapping[str, Any]) -> None:
    """Takes all weights of a model from Keras' store; see `Layer.load_own_variables`."""
    if isinstance(model, BatchModel):
        keep_together([*model.layers, *model.metrics])
    stored = set(store.keys())
    named = _named(model)
    if not stored >= set(named):  # an older file has the names that Keras chose
        named = _named(model, chosen_by_keras=True)
    for name, weight in named.items():
        if name not in stored:
            raise ValueError(f"there are no weights {name!r}")
        found, wanted = tuple(store[name].shape), tuple(weight.shape)
        if found != wanted:  # seen before it is read: a forged one may be of any size
            raise ValueError(f"the weights {name!r} are {found} instead of {wanted}")
        weight.assign(np.array(store[name]))


def lasting_weights(model: Any) -> list[Any]:
    """The weights of a model without the state of its metrics, which Keras 2 counts among them."""
    passing = {id(weight) for metric in model.metrics for weight in metric.variables}
    return [weight for weight in model.weights if id(weight) not in passing]


def _named(model: Any, chosen_by_keras: bool = False) -> dict[str, Any]:
    """Weights by name: ``gene_scale`` of the model itself, ``teacher_norm.gamma`` of a layer.

    The layers within a layer go by their numbers, as ``encoder.0.kernel``: Keras may name them
    otherwise next time. So do all layers of a model that is none of ours.
    """
    seen = {id(weight) for metric in model.metrics for weight in metric.variables}
    named: dict[str, Any] = {}

    def collect(prefix: str, layers: Iterable[Any], weights: Iterable[Any]) -> None:
        for name, layer in layers:
            collect(f"{prefix}{name}.", enumerate(_sublayers(layer)), layer.weights)
        for weight in weights:
            if id(weight) not in seen:
                name, twins = prefix + _name_of(weight), 0
                while (unique := f"{name}_{twins}" if twins else name) in named:
                    twins += 1
                named[unique] = weight
                seen.add(id(weight))

    ours = isinstance(model, BatchModel)
    names = _layer_names(model, chosen_by_keras) if ours else range(len(model.layers))
    collect("", zip(names, model.layers, strict=True), model.weights)
    return named


def _layer_names(model: Any, chosen_by_keras: bool) -> list[str]:
    """Names of a model's layers. Keras numbers those without one within a process: here they are
    numbered within the model, so that they are the same when it is made again."""
    count: dict[str, int] = {}
    names = []
    for layer in model.layers:
        name, kind = layer.name, type(layer).__name__
        if not chosen_by_keras and is_automatic(name, kind):
            number = count.get(kind, 0)
            count[kind] = number + 1
            name = re.sub(r"_\d+$", "", name) + (f"_{number}" if number else "")
        names.append(name)
    return names


def _sublayers(layer: Any) -> list[Any]:
    """The layers directly within a layer that have weights."""
    return [inner for inner in layers_within(layer) if inner.weights]


def _name_of(weight: Any) -> str:
    """Name of a weight within its layer, on every Keras."""
    return weight.name.rsplit("/")[-1].split(":")[0]


def _nothing(store: Any) -> None:
    """Saves and loads nothing."""
