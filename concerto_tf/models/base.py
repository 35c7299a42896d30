"""What every contrastive model shares: cells in, two views, one loss, embeddings out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import tensorflow as tf

from concerto_tf._keras import KERAS_MAJOR, apply_gradient_step, keras, replica_count, state_weight
from concerto_tf._version import __version__
from concerto_tf.errors import InputError
from concerto_tf.losses import Alignment, EffectiveRank, Uniformity, nt_xent
from concerto_tf.models import source_statistics
from concerto_tf.models.batch_model import BatchModel
from concerto_tf.models.batches import batch_size_of
from concerto_tf.models.encoder import Geometry, embed_in_order
from concerto_tf.models.modality import ModalityInput, chosen_modalities, config_of
from concerto_tf.models.placement import Placement
from concerto_tf.models.presets import DEFAULT, Preset, Training, by_name
from concerto_tf.models.view_loss import view_loss
from concerto_tf.models.weights import load_weights, save_weights
from concerto_tf.records.batch import RNA, Batch, Genes, Minibatch
from concerto_tf.records.units import TARGET_SUM

if TYPE_CHECKING:
    from concerto_tf.records import Records

#: Version of what a saved model holds; raised when an older package could not read a newer file.
SAVED_FORMAT = 1
#: What a configuration holds beside the arguments of the class.
STAMPS = ("concerto_tf", "saved_format")


class ContrastiveModel(BatchModel):
    """Base of the contrastive models: two views of each cell, pulled together by a loss.

    It takes the minibatches of `Records.dataset`, which `concerto_tf.records.batch` describes: of
    each modality ``genes`` int32 [B, K] and ``values`` float32 [B, K], raw counts, and what else
    there is. Calling the model gives embeddings; `fit` trains it. Genes that a minibatch was not
    ``measured`` for are taken at their mean instead of at zero.

    A method implements `views` (two views of a batch in training), ``call`` (embeddings) and
    `embedding_dim`. It may look at cells before its training (`initialize`), compute its loss
    otherwise (`batch_loss`), and do something behind each step (`after_step`).

    Args:
        vocabulary: Identifiers of all G genes, in the order of the gene indices.
        symbols: Symbols of the genes, where the identifiers are something else.
        genes: Indices of the input genes, ascending; ``None`` for all. The others still count
            towards a cell's total.
        modality: The modality that vocabulary, symbols, genes and target_sum are of.
        modalities: Further modalities, of a method that looks at several: name to the same
            arguments, of which ``vocabulary`` must be there.
        sources: Names of the sources (batches, donors, technologies) of the cells.
        target_sum: Total to which counts are scaled before ``log1p``; ``None`` where the values
            are log-normalized.
        loss: The loss between two views: ``nt_xent``, ``info_nce`` or ``vicreg``, or any Keras
            loss, called with view b as ``y_true`` and view a as ``y_pred``, both [B, d].
        temperature: Temperature of ``nt_xent`` and ``info_nce``.
        negatives: Which cells a cell is told apart from: ``all``, or those of its own ``source``
            (with ``nt_xent`` only).
        seed: Seed of the initial weights and of the views.
        **kwargs: Of `keras.Model`.
    """

    #: The method's presets by name, ``default`` among them.
    presets: Mapping[str, Preset] = by_name(Preset(DEFAULT, Training()))
    #: Whether the method looks at more than one modality where there are more.
    looks_at_several = False
    #: Arguments that a method makes by itself, and so are none of its own.
    makes: frozenset[str] = frozenset()
    #: The modalities that the model looks at, in order.
    modality_inputs: tuple[ModalityInput, ...]
    #: Moves embeddings, in a method that may begin with components; else None. Set in `__init__`:
    #: Keras 2 tracks no layer under the name of a class attribute.
    placement: Placement | None

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        symbols: Sequence[str] | None = None,
        genes: Genes | None = None,
        modality: str = RNA,
        modalities: Mapping[str, Mapping[str, Any]] | None = None,
        sources: Sequence[str] = ("all",),
        target_sum: float | None = float(TARGET_SUM),
        loss: Any = "nt_xent",
        temperature: float = 0.5,
        negatives: str = "all",
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        # Raw counts do not fit into half precision; `normalize` casts them once they are small.
        super().__init__(autocast=False, **kwargs)
        self.placement = None
        own = {"symbols": symbols, "genes": genes, "target_sum": target_sum}
        further = dict(modalities or {})
        if further and not self.looks_at_several:
            raise InputError(
                f"{type(self).__name__} looks at {modality} alone, not at further ones."
            )
        if modality in further:
            raise InputError(f"modality {modality!r} is named twice.")
        self.modality_inputs = tuple(
            ModalityInput(name, **of)
            for name, of in {modality: {"vocabulary": vocabulary, **own}, **further}.items()
        )
        for one in self.modality_inputs:
            one.build(self)
        self.sources = tuple(sources)
        self.temperature = float(temperature)
        self.negatives = str(negatives)
        self.seed = int(seed)
        if not self.sources:
            raise InputError("A model needs at least one source.")
        # Not `self.loss`: that is what Keras' `compile` was given.
        self.view_loss = view_loss(loss, self.temperature, self.negatives)
        self._loss_name = loss if isinstance(loss, str) else None
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.diagnostics = [Alignment(), Uniformity(), EffectiveRank()]
        self.started = state_weight(self, "started", (), "int32")

    # --- shape of the input -----------------------------------------------------------------

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Identifiers of all genes of the first modality."""
        return self.modality_inputs[0].vocabulary

    @property
    def embedding_dim(self) -> int:
        """Width of an embedding."""
        raise NotImplementedError

    @property
    def geometry(self) -> Geometry:
        """Where cells lie in the embeddings."""
        if self.placement is None:
            return Geometry(np.zeros(self.embedding_dim, np.float32))
        return self.placement.geometry

    @property
    def recipe(self) -> Training:
        """How the model is trained by default."""
        return self.presets[DEFAULT].training

    @property
    def needs_training(self) -> bool:
        """Whether training moves embeddings from where the initialization puts them."""
        return True

    # --- what a method implements -----------------------------------------------------------

    def views(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """Two views [B, d] of the cells of a batch, for training."""
        raise NotImplementedError

    def initialize(self, data: Iterable[Batch]) -> None:
        """Looks at cells before the first training, which a method may begin from.

        `fit` calls it on a new model. The model remembers, also when saved, that it has begun.

        Args:
            data: Batches of cells in random order.
        """
        self.started.assign(1)

    @classmethod
    def from_records(
        cls, records: Records, genes: Genes | None = None, **kwargs: Any
    ) -> ContrastiveModel:
        """A new model for the cells of records.

        Args:
            records: Finished records.
            genes: Indices of the input genes; ``None`` for all.
            **kwargs: Of the class; ``modalities``, where given, are names (`chosen_modalities`).

        Returns:
            The model, with the records' vocabulary and sources, which normalizes counts and
            leaves log-normalized values unchanged. Counts are scaled to the records' typical total
            where that is below 10,000, unless ``target_sum`` is a number, or ``median`` for it.
        """
        first, *further = chosen_modalities(
            records, kwargs.pop("modalities", None), cls.looks_at_several
        )
        if further:
            kwargs["modalities"] = {name: config_of(records, name) for name in further}
        model = cls(
            modality=first,
            sources=records.sources,
            **config_of(records, first, genes, kwargs.pop("target_sum", None)),
            **kwargs,
        )
        for one in model.modality_inputs:
            one.learn_share(records)
        return model

    def with_sources(self, sources: Sequence[str]) -> Self:
        """The same model for cells of other sources.

        A source that both have keeps its statistics and its alignment.

        Args:
            sources: Names of the new sources.

        Returns:
            A new model with the weights of this one.
        """
        other = type(self).from_config({**self.get_config(), "sources": list(sources)})
        source_statistics.carry_over(self, other)
        return other

    def untrained(self, sources: Sequence[str], seed: int, **options: Any) -> ContrastiveModel:
        """The same method and options for cells of other sources, with random weights.

        It takes no PCA initialization; `finetune` trains it from labels alone.

        Args:
            sources: Names of the sources.
            seed: Seed of the weights.
            **options: Arguments of the class that differ.
        """
        own = {"sources": list(sources), "seed": seed, **options}
        fresh = type(self).from_config({**self.get_config(), **own})
        for one, of in zip(fresh.modality_inputs, self.modality_inputs, strict=True):
            one.gene_share.assign(of.gene_share)
        fresh.started.assign(1)
        return fresh

    def for_batches(self, batch_size: int) -> ContrastiveModel:
        """This model for training with minibatches of a size, where that matters to it.

        Args:
            batch_size: Cells per minibatch, over all replicas.

        Returns:
            This model, or another with its weights.

        Raises:
            InputError: The model cannot be trained with such minibatches.
        """
        return self

    # --- training ---------------------------------------------------------------------------

    @property
    def metrics(self) -> list[Any]:
        return [self.loss_tracker, *self.diagnostics]

    def contrastive_loss(
        self, view_a: tf.Tensor, view_b: tf.Tensor, source: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Loss [B] of a batch's two views [B, d] of cells of these sources [B]."""
        if self.negatives == "source" and len(self.sources) > 1:
            return nt_xent(view_a, view_b, self.view_loss.temperature, source)
        # Its `call`: what a loss does around that is for targets and not for views.
        return self.view_loss.call(view_b, view_a)

    def batch_loss(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Loss and views of a batch in training; a method may compute its loss otherwise.

        Args:
            batch: As the class describes.

        Returns:
            The loss of each cell [B], or of all, and the two views [B, d] that the diagnostics
            look at.
        """
        view_a, view_b = self.views(batch)
        return self.contrastive_loss(view_a, view_b, Minibatch(batch).source), view_a, view_b

    def after_step(self) -> None:
        """Called in a training step once the weights have changed."""
        return  # AutoGraph takes no function that is a docstring alone

    def get_compile_config(self) -> dict[str, Any] | None:
        optimizer = getattr(self, "optimizer", None)
        return optimizer and {
            "optimizer": keras.optimizers.serialize(optimizer),
            "jit_compile": self._jit_compile_asked,
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(
            keras.optimizers.deserialize(config["optimizer"]), jit_compile=config["jit_compile"]
        )

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        batch = data[0] if isinstance(data, tuple) else data
        with tf.GradientTape() as tape:
            loss, view_a, view_b = self.batch_loss(batch)
            loss = tf.reduce_mean(loss)
            # Gradients are summed over replicas, so each gives its share of the mean.
            share = loss / replica_count()
        apply_gradient_step(self.optimizer, tape, share, self.learned_variables)
        self.after_step()
        return self._logs(loss, view_a, view_b)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        batch = data[0] if isinstance(data, tuple) else data
        # Views are those of training, but evaluating leaves no trace.
        with source_statistics.unchanged(self):
            loss, view_a, view_b = self.batch_loss(batch)
        return self._logs(tf.reduce_mean(loss), view_a, view_b)

    def _logs(self, loss: tf.Tensor, view_a: tf.Tensor, view_b: tf.Tensor) -> dict[str, tf.Tensor]:
        self.loss_tracker.update_state(loss)
        for metric in self.diagnostics:
            metric.update_state(view_a, view_b)
        # In one piece each, which Keras 3 needs to take means over several machines.
        shape = [1] if KERAS_MAJOR >= 3 and replica_count() > 1 else []
        return {metric.name: tf.reshape(metric.result(), shape) for metric in self.metrics}

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.fit`, and before it `initialize` where the model is new.

        Args:
            x: Dataset of batches, shuffled; endless ones need ``steps_per_epoch``.
            *args: Of `keras.Model.fit`.
            **kwargs: Of `keras.Model.fit`.

        Returns:
            The `History` of `keras.Model.fit`.
        """
        cells = batch_size_of(x)
        if cells == 1:
            raise InputError(
                "batches of one cell: a cell is contrasted with others; batch at least 2 together"
            )
        if cells is not None:
            self.for_batches(cells)  # says so if the model cannot be trained with them
        if isinstance(x, tf.data.Dataset) and not int(tf.convert_to_tensor(self.started)):
            self.initialize(x.take(kwargs.get("steps_per_epoch") or -1))
        return super().fit(x, *args, **kwargs)

    def calibrate(self, data: Iterable[Batch]) -> None:
        """Sets the statistics of sources from cells, such as those of a query.

        The layers look at the cells as they do in training, where genes may be hidden before them,
        and keep what they find; weights do not change.

        Args:
            data: Batches of cells; at most 128 are looked at. A source with hardly a cell among
                them keeps its statistics.
        """
        source_statistics.calibrate_sources(self, data)

    # --- use --------------------------------------------------------------------------------

    def embed(
        self, data: Iterable[Batch], measured: Mapping[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """Embeddings of cells in the order of the input.

        Args:
            data: Batches of cells. With ``row`` in them (as `Records.dataset` gives it) cells come
                back in that order, whatever the order of reading, and rows of -1 are left out.
            measured: Which genes of the vocabulary were measured at all, bool [G] by modality; by
                default all.

        Returns:
            Embeddings [N, d], float32.
        """
        return embed_in_order(self, data, measured)

    def get_config(self) -> dict[str, Any]:
        return {
            "concerto_tf": __version__,
            "saved_format": SAVED_FORMAT,
            "name": self.name,
            "modality": self.modality_inputs[0].name,
            **self.modality_inputs[0].get_config(),
            "modalities": {one.name: one.get_config() for one in self.modality_inputs[1:]},
            "sources": list(self.sources),
            "loss": self._loss_name or keras.losses.serialize(self.view_loss),
            "temperature": self.temperature,
            "negatives": self.negatives,
            "seed": self.seed,
        }

    def save_own_variables(self, store: Any) -> None:
        save_weights(self, store)

    def load_own_variables(self, store: Any) -> None:
        load_weights(self, store)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        return cls(**{key: value for key, value in config.items() if key not in STAMPS})
