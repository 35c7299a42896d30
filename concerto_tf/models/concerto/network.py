"""Concerto: an attention teacher and a dense student that agree on every cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import serializable, state_weight
from concerto_tf.errors import InputError, checked_positive, checked_share
from concerto_tf.models.base import ContrastiveModel
from concerto_tf.models.batches import first_cells
from concerto_tf.models.concerto.branches import Architecture, Seen
from concerto_tf.models.concerto.initialization import initialize
from concerto_tf.models.concerto.presets import PRESETS
from concerto_tf.models.concerto.teacher_student import build_networks
from concerto_tf.models.encoder import modality_input
from concerto_tf.models.placement import READOUT_OFFSET, Placement
from concerto_tf.models.presets import Training
from concerto_tf.models.seeds import Seeds
from concerto_tf.models.source_statistics import deviations
from concerto_tf.numerics.alignment import Comparison
from concerto_tf.records.batch import Batch, Minibatch

_READOUTS = ("teacher", "student", "both")


@serializable
class Concerto(ContrastiveModel):
    """Self-supervised embeddings of cells from a teacher and a student network.

    The teacher aggregates gene embeddings by attention over all genes; the student is a dense
    layer on the values. Each sees its own random part of the cell (dropout views), and NT-Xent
    pulls the two views of a cell together. Batch normalization is source-aware.

    Further modalities (proteins, peaks) have an attention and a student's branch of their own. The
    branches are summed before normalization, dropout and the dense layer, which they share. A cell
    without any value in a modality lacks it, and stands at its mean there.

    ``Concerto.presets["paper"]`` has the paper's values. It begins with random weights, has no
    projection head, hides nothing before the dropout layer and reads the teacher's output.

    Args:
        vocabulary: Identifiers of all G genes, in the order of the gene indices.
        modality_dropout: Share of the cells of which each view hides one modality.
        units: Width d of the gene embeddings.
        attention_units: Width of the attention's hidden layer.
        hidden_units: Width of the teacher's and the student's dense layer, of which the embedding
            is made.
        head_units: Width of the linear projection on which the loss is taken; ``None`` takes it
            on the dense layer itself, as in the paper.
        mask_rate: Share of a cell's genes that each view hides.
        dropout: Dropout before the dense layer.
        value_clip: Largest absolute value after the student's input normalization; ``None`` for
            no limit.
        input_epsilon: Added to a gene's variance where values are divided by its standard
            deviation. Large values keep quiet genes quiet.
        scale_genes: Whether the teacher's values are divided by the genes' standard deviations
            too.
        scale_inputs: Whether the student's normalized input is divided by the root of the number
            of genes, so that Adam's steps are small against the weights whatever that number.
        components: Number of principal components in the PCA initialization; 0 for random weights.
        denoise: Share of the noise that is taken out of each component there, 0 to 1
            (`principal_components`).
        align_sources: Whether PCA initialization aligns sources by the cell types that they share
            (`numerics.alignment`) instead of centering each.
        readout: The embedding: the ``teacher``'s or the ``student``'s dense layer, or ``both``,
            each L2-normalized, side by side.
        readout_offset: What is added to every unit of the embedding that holds a component,
            in standard deviations: without it, cells in the middle of all others have no direction
            to compare by cosine. Distances do not change. Not with the readout ``both``.
        readout_activation: ``relu`` to read the dense layer after its activation, ``None`` before.
        **kwargs: Of `ContrastiveModel`: symbols, genes, modality, modalities, sources, target_sum,
            temperature, negatives, seed.

    Example:

    >>> import numpy as np, tensorflow as tf
    >>> from concerto_tf.models import Concerto
    >>> model = Concerto([f"gene{i}" for i in range(50)], hidden_units=8)
    >>> rng = np.random.default_rng(0)
    >>> cells = {
    ...     "genes": np.tile(np.arange(50, dtype=np.int32), (32, 1)),
    ...     "values": rng.poisson(1.0, (32, 50)).astype(np.float32),
    ... }
    >>> model.compile()
    >>> data = tf.data.Dataset.from_tensors(cells)
    >>> history = model.fit(data, epochs=2, verbose=0)
    >>> model.embed(data).shape
    (32, 8)

    Reference:
        Concerto, equations 1 to 9, and 10 and 11 for several modalities.
    """

    presets = PRESETS
    looks_at_several = True

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        modality_dropout: float = 0.2,
        units: int = 128,
        attention_units: int = 32,
        hidden_units: int = 128,
        head_units: int | None = 128,
        mask_rate: float = 0.5,
        dropout: float = 0.0,
        value_clip: float | None = 10.0,
        input_epsilon: float = 0.01,
        scale_genes: bool = True,
        scale_inputs: bool = True,
        components: int = 50,
        denoise: float = 0.5,
        align_sources: bool = True,
        readout: str = "student",
        readout_offset: float = READOUT_OFFSET,
        readout_activation: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(vocabulary, **kwargs)
        if readout not in _READOUTS:
            raise InputError(f"readout must be one of {', '.join(_READOUTS)}, not {readout!r}.")
        if readout_activation not in (None, "relu"):
            raise InputError(
                f"readout_activation must be relu or None, not {readout_activation!r}."
            )
        self.modality_dropout = float(modality_dropout)
        self.units = int(units)
        self.attention_units = int(attention_units)
        self.hidden_units = int(hidden_units)
        self.head_units = None if head_units is None else int(head_units)
        self.mask_rate = float(mask_rate)
        self.dropout = float(dropout)
        self.value_clip = None if value_clip is None else checked_positive("value_clip", value_clip)
        self.input_epsilon = checked_positive("input_epsilon", input_epsilon)
        self.scale_genes = bool(scale_genes)
        self.scale_inputs = bool(scale_inputs)
        self.components = int(components)
        self.denoise = checked_share("denoise", denoise)
        self.align_sources = bool(align_sources and self.components)
        self.readout = readout
        self.placement: Placement = Placement(readout_offset, name="placement")
        self.readout_activation = readout_activation
        architecture = Architecture(
            len(self.sources),
            self.units,
            self.attention_units,
            self.hidden_units,
            self.head_units,
            self.mask_rate,
            self.dropout,
            self.modality_dropout,
            self.input_epsilon,
            self.value_clip,
            self.scale_inputs,
            self.align_sources,
        )
        self.networks = build_networks(self.modality_inputs, architecture, Seeds(self.seed))
        self._own_layers = self.networks.layers
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Creates all weights: their shapes are known without any data."""
        self.placement.build((None, self.embedding_dim))
        for branch in self.networks.branches:
            name = f"{branch.name}_gene_scale"
            scale = state_weight(self, name, (branch.n_inputs,), initializer="ones")
            branch.scale = scale if self.scale_genes else None
        self.networks.build()
        self.built = True

    @property
    def embedding_dim(self) -> int:
        return self.hidden_units * (2 if self.readout == "both" else 1)

    @property
    def recipe(self) -> Training:
        recipe, random = super().recipe, Training()
        if not self.components:
            recipe = replace(recipe, most_epochs=random.most_epochs)
        if not self.scale_inputs:
            recipe = replace(recipe, finetuning_rate=random.finetuning_rate)
        return recipe

    @property
    def needs_training(self) -> bool:
        # A student that begins as a linear map of components stays there, or gains nothing by
        # leaving (docs/benchmarks.md). Not so, perhaps, what somebody makes of it.
        own = type(self) is not Concerto or self._loss_name != "nt_xent"
        return own or not self.components or self.readout != "student"

    def untrained(self, sources: Sequence[str], seed: int, **options: Any) -> Concerto:
        # The small steps of scaled inputs suit a PCA initialization.
        return super().untrained(sources, seed, **{"scale_inputs": False, **options})

    @property
    def heads(self) -> list[Any]:
        """The projections that only the loss looks at."""
        return self.networks.heads

    def initialize(self, data: Iterable[Batch]) -> None:
        """PCA initialization of both networks; see `DenseModel.initialize`."""
        super().initialize(data)
        xs, source = first_cells(
            lambda batch: self.networks.values(Minibatch(batch)),
            data,
            sum(one.n_inputs for one in self.modality_inputs),
        )
        if not self.components or len(source) < 3:
            return
        by = Comparison(self.input_epsilon, self.value_clip, self.components, self.seed)
        spread = initialize(self.networks, xs, source, by, self.denoise, self.align_sources)
        if spread is None or self.readout == "both":
            return  # whose halves are of length 1, and so compared by cosine already
        whole = self.readout_activation is None  # a ReLU leaves half of it
        self.placement.place(2 * spread.shape[1], np.tile(spread, 2) if whole else None)

    def call(self, batch: Batch, training: bool | None = None) -> tf.Tensor:
        seen, source = self._look(batch)
        parts = []
        if self.readout != "student":
            parts.append(self.networks.teacher(seen, source, training=False))
        if self.readout != "teacher":
            parts.append(self.networks.student(seen, source, training=False))
        if self.readout_activation is not None:
            parts = [tf.nn.relu(part) for part in parts]
        if len(parts) == 1:
            return self.placement(parts[0])
        return tf.concat([tf.math.l2_normalize(part, axis=-1) for part in parts], axis=-1)

    def _look(self, batch: Batch) -> tuple[list[Seen], tf.Tensor]:
        """What a batch has of each modality, and its source codes."""
        view = Minibatch(batch)
        return self.networks.look(view), view.source

    def represent(self, batch: Batch, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """The teacher's and the student's dense layer [B, hidden_units], before its activation."""
        seen, source = self._look(batch)
        return tuple(
            network(seen, source, training)
            for network in (self.networks.teacher, self.networks.student)
        )

    def standardized(self, batch: Batch) -> tf.Tensor:
        """Values normalized by source, as the student takes them in [B, features].

        Modalities stand side by side, zeros for one that a cell lacks.
        """
        return self.networks.standardized(Minibatch(batch), self.compute_dtype)

    @property
    def deviations(self) -> np.ndarray:
        """Standard deviations that `standardized` values were divided by [features]."""
        return np.concatenate([deviations(one.student_norm) for one in self.networks.branches])

    @property
    def linear(self) -> bool:
        """Whether embeddings are a linear function of `standardized` values, up to a constant."""
        return self.readout == "student" and self.readout_activation is None

    def read(self, standardized: tf.Tensor, batch: Batch) -> tf.Tensor:
        """The student's embeddings [B, d] of `standardized` values, for the batch's sources."""
        standardized = tf.cast(standardized, self.compute_dtype)
        parts = tf.split(standardized, [one.n_inputs for one in self.modality_inputs], axis=1)
        return self.placement(self.networks.read_student(parts, Minibatch(batch).source))

    @property
    def attention_trained(self) -> bool:
        """Whether the teacher's attention was trained: its bias begins with zeros."""
        biases = [branch.attention.bias for branch in self.networks.branches]
        return any(bool(tf.reduce_any(tf.not_equal(bias, 0))) for bias in biases)

    def views(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        teacher, student = (tf.nn.relu(part) for part in self.represent(batch, training=True))
        if self.networks.teacher_head is not None:
            teacher = self.networks.teacher_head(teacher)
            student = self.networks.student_head(student)
        return teacher, student

    def attention_weights(
        self, batch: Batch, modality: str | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Attention of the teacher to each feature of each cell.

        Args:
            batch: As `ContrastiveModel` describes, not packed.
            modality: Which modality's; by default the first.

        Returns:
            Indices int32 [B, K] among the features that the model looks at, and their weights
            [B, K] (equation 4).
        """
        name = modality_input(self, modality or self.modality_inputs[0].name).name
        branch, cells, _, measured = next(
            seen for seen in self._look(batch)[0] if seen.branch.name == name
        )
        if cells is None:
            raise InputError(f"the cells have no {name}, which has the attention asked for")
        genes, values, rows = cells
        return genes, branch.attention.attention_weights(
            genes, branch.scaled(genes, values), rows, branch.unmeasured(measured)
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "modality_dropout": self.modality_dropout,
            "units": self.units,
            "attention_units": self.attention_units,
            "hidden_units": self.hidden_units,
            "head_units": self.head_units,
            "mask_rate": self.mask_rate,
            "dropout": self.dropout,
            "value_clip": self.value_clip,
            "input_epsilon": self.input_epsilon,
            "scale_genes": self.scale_genes,
            "scale_inputs": self.scale_inputs,
            "components": self.components,
            "denoise": self.denoise,
            "align_sources": self.align_sources,
            "readout": self.readout,
            "readout_offset": self.placement.offset,
            "readout_activation": self.readout_activation,
        }
