"""CLEAR: simulated noise, a slowly following encoder and a queue of negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import assign_everywhere, keras, serializable
from concerto_tf.errors import InputError, checked_share
from concerto_tf.layers import Augmentation, EmbeddingQueue
from concerto_tf.losses import info_nce
from concerto_tf.models.clear.presets import PRESETS
from concerto_tf.models.dense.network import DenseModel, LayerLike, refuse_made
from concerto_tf.models.presets import Training
from concerto_tf.models.seeds import Seeds
from concerto_tf.records.batch import Batch

#: Embeddings that the queue holds where nothing else was asked for, in whole minibatches.
_QUEUE = 1024


@serializable
class CLEAR(DenseModel):
    """Contrastive learning with the noise of real experiments simulated, and a momentum encoder.

    Each view of a cell is masked, noisy, swapped and crossed over with other cells, each with a
    probability (`concerto_tf.layers.Augmentation`). An encoder embeds it as a query; a second one,
    which follows the first slowly, embeds it as a key. A query is to find the key of the cell's
    other view among the keys of the minibatch and of earlier minibatches, kept in a queue. Keys
    and queue are state of the model: saved with it, and continued where training is.

    ``CLEAR.presets["paper"]`` has the paper's values, ``"authors"`` those of the authors' program.

    Args:
        vocabulary: Identifiers of all G genes, in the order of the gene indices.
        mask, noise, swap, crossover, crossover_many, probability, stddev: As in `Augmentation`.
        momentum: Share of itself that the key encoder keeps at each step.
        queue: Number of keys of earlier minibatches, a multiple of twice the minibatch's cells
            (over all replicas); ``None`` for the multiple nearest to 1,024 from below.
        batch_size: Cells per minibatch, over all replicas, that ``queue=None`` is meant for;
            `train` sets it.
        backbone: As in `DenseModel`.
        temperature: Divisor of the similarities.
        seed: Seed of the initial weights and of the views.
        **kwargs: Of `DenseModel`, except for augmentation, loss and negatives.

    Example:

    Trained as `Concerto` is:

    >>> from concerto_tf.models import CLEAR
    >>> model = CLEAR([f"gene{i}" for i in range(50)], backbone=(16, 8), batch_size=32)
    >>> model.embedding_dim
    8

    Reference:
        CLEAR, The CLEAR framework, equations 1 to 3; Architecture and hyperparameters.
    """

    presets = PRESETS
    makes = frozenset({"augmentation", "loss", "negatives"})
    augmentation: Augmentation

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        mask: float = 0.2,
        noise: float = 0.8,
        swap: float = 0.1,
        crossover: float = 0.25,
        crossover_many: float = 0.25,
        probability: float = 0.5,
        stddev: float = 0.2,
        momentum: float = 0.999,
        queue: int | None = None,
        batch_size: int = 256,
        backbone: LayerLike = (1024, 128),
        temperature: float = 0.5,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        refuse_made(CLEAR, kwargs)
        if batch_size < 2 or (queue is not None and queue < 1):
            raise InputError(
                f"batch_size must be 2 or more and queue 1 or more, not {batch_size} and {queue}."
            )
        self._queue, self._batch_size = queue, int(batch_size)
        self._momentum = checked_share("momentum", momentum, below_one=True)
        super().__init__(
            vocabulary,
            augmentation=Augmentation(
                mask,
                noise,
                swap,
                crossover,
                crossover_many,
                probability,
                stddev,
                seed=Seeds(seed)() + 1_000,
                name="augmentation",
            ),
            backbone=backbone,
            temperature=temperature,
            seed=seed,
            **kwargs,
        )

    def build_more(self) -> None:
        self.key_backbone = _twin(self.backbone, (2, self.n_inputs))
        self.key_head = None
        if self.head is not None:
            self.key_head = _twin(self.head, (2, self.embedding_dim))
        views = 2 * self._batch_size
        size = self._queue or max(_QUEUE // views, 1) * views
        self.queue = EmbeddingQueue(size, name="queue")
        width = self.project(tf.zeros([2, self.embedding_dim], self.compute_dtype)).shape[-1]
        self.queue.build((None, width))
        self._follow(0.0)

    def keys(self, x: tf.Tensor) -> tf.Tensor:
        """Keys [B, h] of views [B, n_inputs], by the slow encoder."""
        z = self.key_backbone(x, training=True)
        if self.key_head is not None:
            z = self.key_head(tf.nn.relu(z), training=True)
        return tf.stop_gradient(z)

    def batch_loss(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        x_a, x_b = self.view_inputs(batch)
        q_a, q_b = (self.project(self.encode(x, training=True), training=True) for x in (x_a, x_b))
        k_a, k_b = self.keys(x_a), self.keys(x_b)
        earlier, filled = self.queue(k_a, training=False)
        loss = (
            info_nce(q_a, k_b, earlier, self.temperature, own_key=k_a, filled=filled)
            + info_nce(q_b, k_a, earlier, self.temperature, own_key=k_b, filled=filled)
        ) / 2
        self.queue.enqueue(tf.concat([k_a, k_b], axis=0))
        return loss, q_a, q_b

    def after_step(self) -> None:
        self._follow(self._momentum)

    def begin(self, x: np.ndarray) -> None:
        super().begin(x)
        self._follow(0.0)

    def _follow(self, momentum: float) -> None:
        """Takes the key encoder a step towards the query encoder (equation 3)."""
        pairs = [*zip(self.key_backbone.weights, self.backbone.weights, strict=True)]
        if self.key_head is not None and self.head is not None:
            pairs += zip(self.key_head.weights, self.head.weights, strict=True)
        # Counters behind random layers are each encoder's own.
        slow, fast = zip(
            *((k, q) for k, q in pairs if tf.as_dtype(q.dtype).is_floating), strict=True
        )
        assign_everywhere(
            slow, fast, lambda k, q: tf.cast(momentum, q.dtype) * k + (1 - momentum) * q
        )

    @property
    def learned_variables(self) -> list[Any]:
        keys = [self.key_backbone, *([] if self.key_head is None else [self.key_head])]
        slow = {id(weight) for layer in keys for weight in layer.weights}
        return [weight for weight in self.trainable_variables if id(weight) not in slow]

    @property
    def recipe(self) -> Training:
        # Until the queue is full, there are fewer negatives.
        return replace(super().recipe, settling_steps=self.queue.size // (2 * self._batch_size))

    def for_batches(self, batch_size: int) -> CLEAR:
        if self._queue is not None:
            if self._queue % (2 * batch_size):
                fitting = max(self._queue // (2 * batch_size), 1) * 2 * batch_size
                raise InputError(
                    f"queue is {self._queue}, which is not a multiple of the {2 * batch_size} "
                    f"views of a minibatch of {batch_size} cells; take {fitting}, or leave it out"
                )
            return self
        if batch_size == self._batch_size:
            return self
        other = type(self).from_config({**self.get_config(), "batch_size": batch_size})
        ends = {id(weight) for weight in other.queue.weights}
        for old, new in zip(self.weights, other.weights, strict=True):
            if id(new) not in ends:
                new.assign(old)
        return other

    def get_config(self) -> dict[str, Any]:
        of_views = self.augmentation.get_config()
        names = "mask", "noise", "swap", "crossover", "crossover_many", "probability", "stddev"
        return {
            **super().get_config(),
            **{name: of_views[name] for name in names},
            "momentum": self._momentum,
            "queue": self._queue,
            "batch_size": self._batch_size,
        }


def _twin(layer: Any, shape: tuple[int, int]) -> Any:
    """A layer of the same make that no gradient changes."""
    made = keras.layers.serialize(layer)
    made["config"]["name"] = f"key_{layer.name}"
    twin = keras.layers.deserialize(made)
    twin(tf.zeros(shape, layer.compute_dtype), training=False)
    twin.trainable = False
    return twin
