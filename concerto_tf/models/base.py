"""What every contrastive model shares: cells in, two views, one loss, embeddings out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import (
    KERAS_MAJOR,
    apply_gradient_step,
    keras,
    replica_count,
    state_weight,
)
from concerto_tf._version import __version__
from concerto_tf.errors import InputError
from concerto_tf.layers import LogNormalize
from concerto_tf.losses import Alignment, EffectiveRank, NTXent, Uniformity, nt_xent
from concerto_tf.models import calibration
from concerto_tf.models.batch_model import BatchModel, compiled
from concerto_tf.models.batches import (
    Batch,
    Cells,
    batch_size_of,
    by_batch,
    in_order,
    source_codes,
)
from concerto_tf.models.readout import Readout
from concerto_tf.models.view_loss import view_loss
from concerto_tf.models.weights import load_weights, save_weights
from concerto_tf.records.writer import TARGET_SUM

if TYPE_CHECKING:
    from concerto_tf.records import Records

#: Version of what a saved model holds; raised when an older package could not read a newer file.
SAVED_FORMAT = 1

NEGATIVES = ("all", "source")
#: Largest share of a cell's counts that genes which were not measured may stand for.
_MOST_MISSING = 0.99


class ContrastiveModel(Readout, BatchModel):
    """Base of the contrastive models: two views of each cell, pulled together by a loss.

    It takes the batches of `Records.dataset`: a dict with ``genes`` int32 [B, K] (indices in
    ``vocabulary``, padded with 0), ``values`` float32 [B, K] (raw counts, padded with 0), and
    optionally ``source`` int32 [B], ``total`` float32 [B] (total count over all genes, where
    ``values`` holds a part of them) and ``offset`` int32 [B, K] (packed batches). Calling the
    model gives embeddings; `fit` trains it.

    At inference a batch may also hold ``observed`` bool [G], the same for all cells: which genes
    were measured at all. The others are missing, and taken at their mean instead of at zero.

    A model of this kind builds its layers in ``_build_layers`` and implements ``views`` (two
    views of a batch in training) and ``call`` (embeddings).

    Args:
        vocabulary: Identifiers of all G genes, in the order of the gene indices.
        symbols: Symbols of the genes, where the identifiers are something else.
        genes: Indices of the genes the model looks at, ascending; ``None`` for all. The other
            genes still count towards a cell's total.
        modality: The modality that vocabulary, symbols and genes are of.
        sources: Names of the sources (batches, donors, technologies) of the cells.
        target_sum: Total to which counts are scaled before ``log1p``; ``None`` where the values
            are normalised already.
        loss: The loss between two views: ``nt_xent``, ``info_nce`` or ``vicreg``, or any Keras
            loss, called with view b as ``y_true`` and view a as ``y_pred``, both [B, d].
        temperature: Temperature of ``nt_xent`` and ``info_nce``.
        negatives: Which cells a cell is told apart from: ``all``, or those of its own ``source``
            (with ``nt_xent`` only).
        seed: Seed of the initial weights and of the views.
        **kwargs: Of `keras.Model`.
    """

    #: Arguments of the class by name of a preset.
    PRESETS: dict[str, dict[str, Any]] = {}
    #: How the preset trains where it says so: ``epochs``, ``batch_size``, ``learning_rate``,
    #: ``genes``, and ``cosine`` for a rate that falls along a cosine.
    TRAINING: dict[str, dict[str, Any]] = {}
    #: Peak learning rate of fine-tuning to labels; the paper's.
    finetuning_rate = 1e-3
    #: Weights that files of earlier versions may lack.
    LATER_WEIGHTS = frozenset({"gene_share", "readout_origin", "readout_spread"})
    #: Steps at the start of a training whose losses do not compare with later ones.
    settling_steps = 0
    #: Arguments that files of earlier versions may lack, as those models had them.
    FORMER: dict[str, Any] = {}
    #: Arguments that files of earlier versions hold and that only mattered to their start.
    RETIRED = frozenset({"component_power"})
    #: Further modalities that the model looks at.
    modalities: dict[str, dict[str, Any]] = {}

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        symbols: Sequence[str] | None = None,
        genes: Sequence[int] | None = None,
        modality: str = "rna",
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
        self.vocabulary = tuple(vocabulary)
        self.symbols = None if symbols is None else tuple(symbols)
        self.genes = None if genes is None else tuple(int(g) for g in genes)
        self.modality = str(modality)
        self.sources = tuple(sources)
        self.target_sum = target_sum
        self.temperature = float(temperature)
        self.negatives = str(negatives)
        self.seed = int(seed)
        self._check_arguments()
        # Not `self.loss`: that is what Keras' `compile` was given.
        self.view_loss = view_loss(loss, self.temperature)
        if self.negatives == "source" and not isinstance(self.view_loss, NTXent):
            raise InputError("negatives of the same source only are possible with loss nt_xent.")
        self._loss_name = loss if isinstance(loss, str) else None
        self.normalize = LogNormalize(target_sum, name="normalize")
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.diagnostics = [Alignment(), Uniformity(), EffectiveRank()]
        self.started = state_weight(self, "started", (), "int32")
        self.gene_share = state_weight(self, "gene_share", (len(self.vocabulary),))
        self._embed_step = None

    def _check_arguments(self) -> None:
        if not self.vocabulary or not self.sources:
            raise InputError("A model needs at least one gene and one source.")
        if self.target_sum is not None and not (
            isinstance(self.target_sum, Real) and 0 < self.target_sum < np.inf
        ):
            raise InputError(
                f"target_sum must be a positive number, or None for values that are normalised "
                f"already, not {self.target_sum!r}."
            )
        if not self.temperature > 0:
            raise InputError(f"temperature must be positive, not {self.temperature}.")
        if self.negatives not in NEGATIVES:
            known = " or ".join(NEGATIVES)
            raise InputError(f"negatives must be {known}, not {self.negatives!r}.")
        if self.genes is not None:
            chosen = np.asarray(self.genes)
            if not len(chosen) or chosen[0] < 0 or chosen[-1] >= len(self.vocabulary):
                raise InputError(
                    f"genes must be indices of the {len(self.vocabulary)} genes of the vocabulary."
                )
            if (np.diff(chosen) <= 0).any():
                raise InputError("genes must be ascending indices, each once.")

    # --- shape of the input -----------------------------------------------------------------

    @property
    def n_inputs(self) -> int:
        """Number of genes that the model looks at."""
        return len(self.vocabulary) if self.genes is None else len(self.genes)

    @property
    def embedding_dim(self) -> int:
        """Width of an embedding."""
        raise NotImplementedError

    def nonzeros(self, batch: Batch) -> Cells:
        """Normalised values of the genes the model looks at.

        Args:
            batch: As the class describes.

        Returns:
            Indices int32 [B, K] among the model's own genes, values float32 [B, K], and the row of
            the cell that each value belongs to, int32 [B, K], or None where it stands in its own.
            What is not among the model's genes became padding.
        """
        prefix = "" if self.modality == "rna" else f"{self.modality}/"
        genes, values = (tf.convert_to_tensor(batch[prefix + kind]) for kind in ("genes", "values"))
        total, rows = None if prefix else batch.get("total"), None
        if "observed" in batch:
            # A total that misses genes is small; the counts would come out large.
            total = tf.reduce_sum(values, 1) if total is None else total
            missing = tf.where(batch["observed"], 0.0, self.gene_share)
            total /= 1 - tf.minimum(tf.reduce_sum(missing), _MOST_MISSING)
        if "offset" in batch and not prefix:
            rows = tf.range(tf.shape(genes)[0])[:, tf.newaxis] + batch["offset"]
            total = tf.gather(total, rows)
        values = self.normalize(values, total=total)
        if self.genes is not None:
            place = np.full(len(self.vocabulary), -1, np.int32)
            place[list(self.genes)] = np.arange(len(self.genes), dtype=np.int32)
            genes = tf.gather(tf.constant(place), genes)
            values = tf.where(genes >= 0, values, tf.zeros_like(values))
            genes = tf.maximum(genes, 0)
        return genes, values, rows

    def measured(self, batch: Batch) -> tf.Tensor | None:
        """Which of the genes the model looks at were measured, bool [n_inputs]; None for all."""
        if "observed" not in batch:
            return None
        measured = tf.convert_to_tensor(batch["observed"])
        return measured if self.genes is None else tf.gather(measured, self.genes)

    @property
    def most_epochs(self) -> int | None:
        """Passes over the cells that `train` takes where nothing is said, at most."""
        return None

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
    def choose_modalities(cls, records: Records, wanted: Sequence[str] | None = None) -> list[str]:
        """The modalities of records that a new model looks at.

        Args:
            records: Finished records.
            wanted: Names of some; by default those that the method is for: one, rna where there
                is any.

        Raises:
            InputError: The records do not have one, or the method cannot look at so many.
        """
        held = list(records.manifest.modalities)
        chosen = ["rna" if "rna" in held else held[0]] if wanted is None else list(wanted)
        if len(chosen) != 1:
            raise InputError(
                f"{cls.__name__} looks at one modality, not at {', '.join(chosen) or 'none'}; name "
                "one, or train with method concerto"
            )
        records.vocabulary_of(chosen[0])  # says so if there is none
        return chosen

    @classmethod
    def from_records(
        cls, records: Records, genes: Sequence[int] | None = None, **kwargs: Any
    ) -> ContrastiveModel:
        """A new model for the cells of records.

        Args:
            records: Finished records.
            genes: Indices of the genes to look at; ``None`` for all.
            **kwargs: Of the class; ``modalities``, where given, are names as `choose_modalities`
                takes them.

        Returns:
            The model, with the records' vocabulary and sources, which normalises counts and
            passes on what is normalised already. Counts are scaled to the records' typical total
            where that is below 10,000, unless ``target_sum`` is a number.
        """
        modality = kwargs.pop("modality", None)
        if modality is None:
            [modality] = cls.choose_modalities(records, kwargs.pop("modalities", None))
        vocabulary = records.vocabulary_of(modality)
        model = cls(
            vocabulary.ids,
            symbols=vocabulary.symbols,
            genes=genes,
            sources=records.sources,
            modality=modality,
            target_sum=target_sum_of(records, modality, kwargs.pop("target_sum", None)),
            **kwargs,
        )
        # Means are over all cells, those included that were not measured for the gene.
        share_measured = np.maximum(records.share_measured(modality), 1e-12)
        mean = records.gene_stats_of(modality).mean / share_measured
        model.gene_share.assign((mean / max(mean.sum(), 1e-12)).astype(np.float32))
        return model

    @property
    def looks_at(self) -> tuple[str, ...]:
        """The modalities that the model looks at."""
        return (self.modality, *self.modalities)

    def with_sources(self, sources: Sequence[str]) -> ContrastiveModel:
        """The same model for cells of other sources.

        A source that both have keeps its statistics and its alignment.

        Args:
            sources: Names of the new sources.

        Returns:
            A new model with the weights of this one.
        """
        other = type(self).from_config({**self.get_config(), "sources": list(sources)})
        calibration.carry_over(self, other)
        return other

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
        """What a training step makes of a batch; a method may compute its loss otherwise.

        Args:
            batch: As the class describes.

        Returns:
            The loss of each cell [B], or of all, and the two views [B, d] that the diagnostics
            look at.
        """
        view_a, view_b = self.views(batch)
        return self.contrastive_loss(view_a, view_b, source_codes(batch)), view_a, view_b

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
        with calibration.unchanged(self):
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
        """Sets the sources' statistics from cells, those of a query for example.

        The layers look at the cells as they do in training, where genes may be hidden before them,
        and keep what they find; weights do not change.

        Args:
            data: Batches of cells; at most 128 are looked at. A source with hardly a cell among
                them keeps its statistics.
        """
        calibration.calibrate(self, data)

    # --- use --------------------------------------------------------------------------------

    def embed(self, data: Iterable[Batch], observed: np.ndarray | None = None) -> np.ndarray:
        """Embeddings of cells in the order of the input.

        Args:
            data: Batches of cells. With ``row`` in them (as `Records.dataset` gives it) cells come
                back in that order, whatever the order of reading, and rows of -1 are left out.
            observed: Which genes of the vocabulary were measured at all, bool [G]; by default all.

        Returns:
            Embeddings [N, d], float32.
        """
        found = in_order(self._embedding_step(), data, observed)
        return found["z"] if found else np.zeros((0, self.embedding_dim), np.float32)

    def embed_batches(
        self, data: Iterable[Batch], observed: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray | None, np.ndarray]]:
        """Embeddings batch by batch, for more cells than memory holds embeddings of.

        Args:
            data: As `embed` takes them.
            observed: As `embed` takes it.

        Yields:
            Rows int64 [n] of a batch's cells in the input, None where batches do not say, and
            their embeddings [n, d], float32.
        """
        for rows, found in by_batch(self._embedding_step(), data, observed):
            yield rows, found["z"]

    def _embedding_step(self) -> Any:
        if self._embed_step is None:
            self._embed_step = compiled(
                lambda batch: {"z": tf.cast(self(batch, training=False), tf.float32)}
            )
        return self._embed_step

    def get_config(self) -> dict[str, Any]:
        return {
            "concerto_tf": __version__,
            "saved_format": SAVED_FORMAT,
            "name": self.name,
            "vocabulary": list(self.vocabulary),
            "symbols": None if self.symbols is None else list(self.symbols),
            "genes": None if self.genes is None else list(self.genes),
            "modality": self.modality,
            "sources": list(self.sources),
            "target_sum": self.target_sum,
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
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> ContrastiveModel:
        left_aside = ("concerto_tf", "saved_format", *cls.RETIRED)
        known = {key: value for key, value in config.items() if key not in left_aside}
        return cls(**{**cls.FORMER, **known})


def target_sum_of(records: Records, modality: str, wanted: float | None = None) -> float | None:
    """Total to which a modality of records is scaled before log1p; None if it is not to be.

    RNA is scaled to what a cell of these records has: scaled to more, log1p would set a single
    count far above none, which in cells of few counts is noise.

    Args:
        records: Finished records.
        modality: One of theirs.
        wanted: The total that is asked for; None for what suits.
    """
    if not records.manifest.modalities[modality].scales_with_depth:
        return None
    if wanted is not None:
        return wanted
    if modality != "rna":
        return float(TARGET_SUM)
    return float(min(TARGET_SUM, max(1, round(records.typical_total))))
