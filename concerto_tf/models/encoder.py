"""What tasks need of a model that embeds cells; it may come from another package.

`Encoder` is enough to embed, map, impute and export. What a model can do beyond that is said by
further protocols, each asked for by the task that needs it: `SourceAware`, `Attentive`, `Readable`,
`Teachable` and `Located`. A Keras model of one's own is an encoder by having the members, without
inheriting from anything.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import tensorflow as tf

from concerto_tf.errors import InputError
from concerto_tf.models.batch_model import BatchModel, compiled
from concerto_tf.models.batches import by_batch, in_order
from concerto_tf.models.modality import ModalityInput
from concerto_tf.models.presets import Training
from concerto_tf.records.batch import Batch


@runtime_checkable
class Encoder(Protocol):
    """A Keras model that makes embeddings of minibatches of raw counts.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.layers import scatter_to_dense
    >>> from concerto_tf.models.encoder import Encoder
    >>> from concerto_tf.models.modality import ModalityInput
    >>> from concerto_tf.records.batch import Minibatch
    >>> class Linear(tf.keras.Model):
    ...     sources, embedding_dim = ("all",), 8
    ...
    ...     def __init__(self, genes):
    ...         super().__init__()
    ...         self.modality_inputs = (ModalityInput("rna", genes),)
    ...         self.modality_inputs[0].build(self)
    ...         self.dense = tf.keras.layers.Dense(8)
    ...         self.dense.build((None, len(genes)))
    ...         self.built = True
    ...
    ...     def call(self, batch, training=False):
    ...         [genes] = self.modality_inputs
    ...         cells = genes.cells(Minibatch(batch))
    ...         return self.dense(scatter_to_dense(*cells[:2], genes.n_inputs, cells.rows))
    >>> isinstance(Linear(["CD3E", "MS4A1"]), Encoder)
    True
    """

    @property
    def modality_inputs(self) -> Sequence[ModalityInput]:
        """The modalities that it looks at; cells must have the first one."""

    @property
    def sources(self) -> Sequence[str]:
        """Names of the sources that it knows; cells of any other have source -1."""

    @property
    def embedding_dim(self) -> int:
        """Width d of an embedding."""

    @property
    def weights(self) -> list[Any]:
        """Its weights, all of which exist already."""

    def __call__(self, batch: Batch, training: bool | None = None) -> tf.Tensor:
        """Embeddings [B, d] of the cells of a minibatch (`concerto_tf.records.batch`)."""


@runtime_checkable
class SourceAware(Encoder, Protocol):
    """An encoder that can be adapted to cells of other sources."""

    def with_sources(self, sources: Sequence[str]) -> Self:
        """A new model with the same weights that knows these sources."""

    def calibrate(self, data: Iterable[Batch]) -> None:
        """Sets what the model knows of its sources from minibatches of their cells."""


@runtime_checkable
class Attentive(Encoder, Protocol):
    """An encoder that says how much attention each gene of a cell gets."""

    def attention_weights(
        self, batch: Batch, modality: str | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Indices int32 [B, K] among the input genes of a modality, and their weights [B, K].

        They stand where `ModalityInput.cells` has them.
        """


@runtime_checkable
class Readable(Encoder, Protocol):
    """An encoder whose embeddings may be a linear function of what stands for each gene."""

    @property
    def linear(self) -> bool:
        """Whether they are, up to a constant."""

    def standardized(self, batch: Batch) -> tf.Tensor:
        """What stands for each input gene of the cells [B, F], modalities side by side."""

    def read(self, standardized: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Embeddings [B, d] of that, for cells of the sources that a batch has."""


@runtime_checkable
class Teachable(SourceAware, Protocol):
    """An encoder that `finetune` can teach cell types; registered with Keras, to be saved."""

    @property
    def hidden_units(self) -> int:
        """Width of what `represent` gives."""

    @property
    def recipe(self) -> Training:
        """How it is trained by default."""

    @property
    def heads(self) -> Sequence[Any]:
        """Layers that only its pre-training looks at."""

    def represent(self, batch: Batch, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Two hidden representations [B, hidden_units] of the cells, of views of them in training.

        They are what cell types are told from: each by a softmax layer behind a ReLU.
        """

    def standardized(self, batch: Batch) -> tf.Tensor:
        """Values of all input genes, of all modalities side by side, without their sources."""

    @property
    def deviations(self) -> np.ndarray:
        """What `standardized` values were divided by [F]; ones where they are as they were."""

    def untrained(self, sources: Sequence[str], seed: int) -> Teachable:
        """The same model for these sources, with random weights."""

    def get_config(self) -> dict[str, Any]:
        """What ``from_config`` makes it from again."""


def teachable(encoder: Encoder) -> Teachable:
    """The encoder; raises InputError if it cannot be taught cell types."""
    if not isinstance(encoder, Teachable):
        raise InputError(
            f"labels cannot be taught to a model of class {type(encoder).__name__}; train a single "
            "network"
        )
    return encoder


# --- what it looks at -----------------------------------------------------------------------


def looks_at(encoder: Encoder) -> tuple[str, ...]:
    """Names of the modalities that an encoder looks at."""
    return tuple(one.name for one in encoder.modality_inputs)


def modality_input(encoder: Encoder, name: str) -> ModalityInput:
    """What an encoder looks at in a modality.

    Raises:
        InputError: It does not look at it.
    """
    for one in encoder.modality_inputs:
        if one.name == name:
            return one
    raise InputError(f"the model looks at no {name}, but at {', '.join(looks_at(encoder))}")


def chosen_genes(encoder: Encoder) -> dict[str, tuple[int, ...]]:
    """Modality to the input genes, as `Records.dataset` takes them; not where it is all."""
    return {one.name: one.genes for one in encoder.modality_inputs if one.genes is not None}


# --- embeddings -----------------------------------------------------------------------------


class Geometry(NamedTuple):
    """Where cells lie in an embedding.

    Attributes:
        origin: Where a cell lies that is in the middle of all [d].
        spread: Standard deviation of each unit, of cells trained on and of others [2, d]; 0 for
            units where it is unknown. None if it is unknown for all.
    """

    origin: np.ndarray
    spread: np.ndarray | None = None


@runtime_checkable
class Located(Encoder, Protocol):
    """An encoder that knows where cells lie in its embeddings."""

    @property
    def geometry(self) -> Geometry:
        """Where cells lie."""


def geometry_of(encoder: Encoder) -> Geometry:
    """Where cells lie in the embeddings of an encoder; around 0 where it does not say."""
    if isinstance(encoder, Located):
        return encoder.geometry
    return Geometry(np.zeros(encoder.embedding_dim, np.float32))


def embed_in_order(
    encoder: Encoder, data: Iterable[Batch], measured: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """Embeddings [N, d], float32, in the order of the input; see `ContrastiveModel.embed`."""
    found = in_order(_step(encoder), data, measured)
    return found["z"] if found else np.zeros((0, encoder.embedding_dim), np.float32)


def embed_batches(
    encoder: Encoder, data: Iterable[Batch], measured: Mapping[str, np.ndarray] | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`embed_in_order` batch by batch, for more cells than memory holds embeddings of.

    Yields:
        Rows int64 [n] of a batch's cells in the input, and their embeddings [n, d], float32.
    """
    for rows, found in read_batches(encoder, data, measured):
        yield rows, found["z"]


def read_batches(
    encoder: Encoder,
    data: Iterable[Batch],
    measured: Mapping[str, np.ndarray] | None = None,
    *,
    genes: bool = False,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Embeddings and, where asked for, what stands for the genes of cells, batch by batch.

    Args:
        encoder: The encoder; one of which genes are asked is `Teachable`.
        data: Batches of cells.
        measured: As for `by_batch`.
        genes: Whether the genes are asked for.

    Yields:
        Rows int64 [n] of a batch's cells, and ``z`` [n, d] and ``y`` [n, F], float32.
    """
    return by_batch(_step(encoder, genes), data, measured)


#: Compiled steps of the encoders that are in use, by whether they read the genes.
_STEPS: weakref.WeakKeyDictionary[Any, dict[bool, Any]] = weakref.WeakKeyDictionary()


def _step(encoder: Encoder, genes: bool = False) -> Any:
    steps = _STEPS.setdefault(encoder, {})
    if genes not in steps:
        alive: Any = weakref.proxy(encoder)

        def look(batch: Batch) -> dict[str, tf.Tensor]:
            found = {"z": alive(batch, training=False)}
            if genes:
                found["y"] = alive.standardized(batch)
            return {name: tf.cast(x, tf.float32) for name, x in found.items()}

        # What others have written need not be something that XLA can compile.
        make = compiled if isinstance(encoder, BatchModel) else tf.function
        # AutoGraph would make other errors of those that tell a user what is wrong.
        steps[genes] = make(tf.autograph.experimental.do_not_convert(look))
    return steps[genes]
