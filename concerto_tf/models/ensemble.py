"""Several independently seeded networks as one model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import keras, serializable
from concerto_tf.errors import InputError
from concerto_tf.models.base import ContrastiveModel
from concerto_tf.models.encoder import Geometry, looks_at
from concerto_tf.models.presets import Training
from concerto_tf.records.batch import Batch


@serializable
class Ensemble(ContrastiveModel):
    """Networks of any method that learn from the same cells, each with views of its own.

    One `fit` trains all of them, each as if it were alone (the loss is the sum of theirs), and one
    file holds them. The embedding is theirs side by side, scaled so that the squared distance of
    two cells is the mean of their squared distances in the networks.

    Args:
        models: Models that look at the same genes of cells of the same sources, made with
            different seeds.
        **kwargs: Of `keras.Model`.

    Example:

    >>> from concerto_tf.models import ContrastiveSC, Ensemble
    >>> genes = [f"gene{i}" for i in range(50)]
    >>> model = Ensemble([ContrastiveSC(genes, backbone=(16, 8), seed=i) for i in range(3)])
    >>> model.embedding_dim
    24

    Reference:
        contrastive-sc, Methods, "Combined representation clustering".
    """

    looks_at_several = True

    def __init__(self, models: Sequence[ContrastiveModel], **kwargs: Any) -> None:
        if not models:
            raise InputError("an ensemble needs at least one model")
        first = models[0]
        for model in models[1:]:
            _check_alike(model, first)
        super().__init__(
            modality=first.modality_inputs[0].name,
            **first.modality_inputs[0].get_config(),
            modalities={one.name: one.get_config() for one in first.modality_inputs[1:]},
            sources=first.sources,
            temperature=first.temperature,
            seed=first.seed,
            **kwargs,
        )
        self.models = list(models)
        for own, of in zip(self.modality_inputs, first.modality_inputs, strict=True):
            own.gene_share.assign(of.gene_share)
        self.build()

    def build(self, input_shape: Any = None) -> None:
        self.built = True

    @property
    def embedding_dim(self) -> int:
        return sum(model.embedding_dim for model in self.models)

    @property
    def geometry(self) -> Geometry:
        parts = [model.geometry for model in self.models]
        scale = np.float32(math.sqrt(len(parts)))
        origin = np.concatenate([part.origin for part in parts]) / scale
        spreads = [part.spread for part in parts if part.spread is not None]
        if len(spreads) < len(parts):
            return Geometry(origin)
        return Geometry(origin, np.concatenate(spreads, axis=1) / scale)

    @property
    def recipe(self) -> Training:
        recipes = [model.recipe for model in self.models]
        steps = max(recipe.settling_steps for recipe in recipes)
        return replace(recipes[0], settling_steps=steps)

    @property
    def needs_training(self) -> bool:
        return any(model.needs_training for model in self.models)

    def initialize(self, data: Iterable[Batch]) -> None:
        super().initialize(data)
        for model in self.models:
            model.initialize(data)

    def call(self, batch: Batch, training: bool | None = None) -> tf.Tensor:
        parts = [model(batch, training=training) for model in self.models]
        return tf.concat(parts, axis=-1) / math.sqrt(len(parts))

    def views(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        return _side_by_side([model.views(batch) for model in self.models])

    def batch_loss(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        found = [model.batch_loss(batch) for model in self.models]
        loss = tf.add_n([tf.reduce_mean(loss) for loss, *_ in found])
        return loss, *_side_by_side([views for _, *views in found])

    def after_step(self) -> None:
        for model in self.models:
            model.after_step()

    def for_batches(self, batch_size: int) -> Ensemble:
        models = [model.for_batches(batch_size) for model in self.models]
        if all(new is old for new, old in zip(models, self.models, strict=True)):
            return self
        other = type(self)(models, name=self.name)
        other.started.assign(self.started)
        return other

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "models": [keras.layers.serialize(model) for model in self.models],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Ensemble:
        models = []
        for model in config["models"]:
            # What differs between the models and what was asked for is the sources at most.
            own = {**model["config"], "sources": config["sources"]}
            models.append(keras.layers.deserialize({**model, "config": own}))
        return cls(models, name=config["name"])


def _check_alike(model: ContrastiveModel, first: ContrastiveModel) -> None:
    """Raises InputError if two models do not look at the same in the same cells."""
    if looks_at(model) != looks_at(first):
        raise InputError("the models of an ensemble differ in their modalities")
    if model.sources != first.sources:
        raise InputError("the models of an ensemble differ in their sources")
    for one, other in zip(model.modality_inputs, first.modality_inputs, strict=True):
        own, of = one.get_config(), other.get_config()
        for name in own:
            if own[name] != of[name]:
                raise InputError(f"the models of an ensemble differ in their {name}")


def _side_by_side(views: Sequence[Sequence[tf.Tensor]]) -> tuple[tf.Tensor, tf.Tensor]:
    a, b = (tf.concat(parts, axis=-1) for parts in zip(*views, strict=True))
    return a, b
