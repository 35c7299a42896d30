"""Concerto: an attention teacher and a dense student that agree on every cell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import keras, serializable, state_weight
from concerto_tf.errors import InputError
from concerto_tf.layers import (
    GeneAttention,
    RandomMask,
    SourceBatchNormalization,
    scatter_to_dense,
)
from concerto_tf.models.base import ContrastiveModel
from concerto_tf.models.batches import Batch, Cells, source_codes, tensors
from concerto_tf.models.start import principal_start
from concerto_tf.models.weights import keep_together

READOUTS = ("teacher", "student", "both")
_SAMPLE_VALUES = 100_000_000


@serializable
class Concerto(ContrastiveModel):
    """Self-supervised embeddings of cells from a teacher and a student network.

    The teacher aggregates gene embeddings by attention over all genes; the student is a dense
    layer on the values. Each sees its own random part of the cell (dropout views), and NT-Xent
    pulls the two views of a cell together. Batch normalisation is source-aware.

    The defaults are what embeds best over many data sets; ``Concerto.PRESETS["paper"]`` are the
    paper's values. They differ in that the paper starts at random, has no projection head, hides
    nothing before the dropout layer and reads the teacher's output.

    Args:
        vocabulary: Identifiers of all G genes, in the order of the gene indices.
        units: Width d of the gene embeddings.
        attention_units: Width of the attention's hidden layer.
        hidden_units: Width of the teacher's and the student's dense layer, of which the embedding
            is made.
        head_units: Width of the linear projection on which the loss is taken; ``None`` takes it
            on the dense layer itself, as in the paper.
        mask_rate: Share of a cell's genes that each view hides.
        dropout: Dropout before the dense layer.
        value_clip: Largest absolute value after the student's input normalisation; ``None`` for
            no limit.
        input_epsilon: Added to a gene's variance where values are divided by its standard
            deviation. Large values keep quiet genes quiet.
        scale_genes: Whether the teacher's values are divided by the genes' standard deviations
            too (`set_gene_variance`).
        components: Principal components that `initialize` starts from; 0 keeps the random start.
        readout: The embedding: the ``teacher``'s or the ``student``'s dense layer, or ``both``,
            each L2-normalised, side by side.
        readout_activation: ``relu`` to read the dense layer after its activation, ``None`` before.
        **kwargs: Of `ContrastiveModel`: symbols, genes, sources, target_sum, temperature, seed.

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
        Concerto, equations 1 to 9.
    """

    #: Arguments of the class by name of the preset: ``paper`` holds what is printed.
    PRESETS = {"paper": {
        "units": 128,
        "attention_units": 128,
        "hidden_units": 128,
        "head_units": None,
        "mask_rate": 0.0,
        "dropout": 0.2,
        "value_clip": None,
        "input_epsilon": 1e-3,
        "scale_genes": False,
        "components": 0,
        "readout": "teacher",
        "readout_activation": "relu",
        "temperature": 0.1,
    }}

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        units: int = 128,
        attention_units: int = 32,
        hidden_units: int = 128,
        head_units: int | None = 128,
        mask_rate: float = 0.5,
        dropout: float = 0.0,
        value_clip: float | None = 10.0,
        input_epsilon: float = 0.1,
        scale_genes: bool = True,
        components: int = 50,
        readout: str = "student",
        readout_activation: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(vocabulary, **kwargs)
        if readout not in READOUTS:
            raise InputError(f"readout must be one of {', '.join(READOUTS)}, not {readout!r}.")
        if readout_activation not in (None, "relu"):
            raise InputError(
                f"readout_activation must be relu or None, not {readout_activation!r}."
            )
        self.units = int(units)
        self.attention_units = int(attention_units)
        self.hidden_units = int(hidden_units)
        self.head_units = None if head_units is None else int(head_units)
        self.mask_rate = float(mask_rate)
        self.dropout = float(dropout)
        self.value_clip = value_clip
        self.input_epsilon = float(input_epsilon)
        self.scale_genes = bool(scale_genes)
        self.components = int(components)
        self.readout = readout
        self.readout_activation = readout_activation
        self._build_layers()

    def _build_layers(self) -> None:
        """Creates all layers and their weights: their shapes are known without any data."""
        n, sources, rng = self.n_inputs, len(self.sources), _Seeds(self.seed)
        glorot, normal = keras.initializers.GlorotUniform, keras.initializers.RandomNormal
        self.attention = GeneAttention(
            n,
            self.units,
            self.attention_units,
            embeddings_initializer=normal(stddev=1.0, seed=rng()),
            kernel_initializer=glorot(seed=rng()),
            # Small, so that attention begins near uniform.
            context_initializer=normal(stddev=0.1, seed=rng()),
            name="attention",
        )
        self.teacher_mask = RandomMask(self.mask_rate, seed=rng(), name="teacher_mask")
        self.student_mask = RandomMask(self.mask_rate, seed=rng(), name="student_mask")
        self.teacher_norm = SourceBatchNormalization(sources, epsilon=1e-5, name="teacher_norm")
        self.student_norm = SourceBatchNormalization(
            sources, epsilon=self.input_epsilon, name="student_norm"
        )
        self.teacher_dropout = RandomMask(self.dropout, seed=rng(), name="teacher_dropout")
        self.student_dropout = RandomMask(self.dropout, seed=rng(), name="student_dropout")

        def dense(name: str, width: int) -> keras.layers.Layer:
            return keras.layers.Dense(width, kernel_initializer=glorot(seed=rng()), name=name)

        self.teacher_dense = dense("teacher_dense", self.hidden_units)
        self.student_dense = dense("student_dense", self.hidden_units)
        self.teacher_head = self.student_head = None
        if self.head_units is not None:
            self.teacher_head = dense("teacher_head", self.head_units)
            self.student_head = dense("student_head", self.head_units)
        self.build()

    def build(self, input_shape: Any = None) -> None:
        self.gene_scale = state_weight(self, "gene_scale", (self.n_inputs,), initializer="ones")
        for layer, width in (
            (self.attention, None),
            (self.teacher_mask, None),
            (self.student_mask, None),
            (self.teacher_norm, self.units),
            (self.student_norm, self.n_inputs),
            (self.teacher_dropout, self.units),
            (self.student_dropout, self.n_inputs),
            (self.teacher_dense, self.units),
            (self.student_dense, self.n_inputs),
            (self.teacher_head, self.hidden_units),
            (self.student_head, self.hidden_units),
        ):
            if layer is not None:
                layer.build((None, width))
        keep_together([*self.layers, *self.metrics])
        self.built = True

    @property
    def embedding_dim(self) -> int:
        return self.hidden_units * (2 if self.readout == "both" else 1)

    def initialize(self, data: Iterable[Batch]) -> None:
        """Starts both networks from the principal components of a sample of cells.

        Training then refines what PCA sees instead of finding it again from a random start, which
        small data does not suffice for. No label is looked at.

        Args:
            data: Batches of cells in random order; as many are looked at as fit into 400 MB.
        """
        super().initialize(data)
        x, source = self._sample(data)
        if self.components and len(x) > 2:
            principal_start(self, x, source)

    def _sample(self, data: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
        """Normalised values [n, n_inputs] and source codes [n] of the first cells of ``data``."""
        most = max(2, _SAMPLE_VALUES // self.n_inputs)
        xs, sources, n = [], [], 0
        for batch in data:
            batch = tensors(batch)
            x = tf.cast(self._spread(self.nonzeros(batch)), tf.float32).numpy()
            source = source_codes(batch).numpy()
            if "row" in batch:
                real = batch["row"].numpy() >= 0
                x, source = x[real], source[real]
            xs.append(x)
            sources.append(source)
            n += len(x)
            if n >= most:
                break
        return np.concatenate(xs)[:most], np.concatenate(sources)[:most]

    def call(self, batch: Batch, training: bool | None = None) -> tf.Tensor:
        cells, source = self.nonzeros(batch), source_codes(batch)
        parts = []
        if self.readout != "student":
            parts.append(self._teacher(cells, source, training=False))
        if self.readout != "teacher":
            parts.append(self._student(cells, source, training=False))
        if self.readout_activation is not None:
            parts = [tf.nn.relu(part) for part in parts]
        if len(parts) == 1:
            return parts[0]
        return tf.concat([tf.math.l2_normalize(part, axis=-1) for part in parts], axis=-1)

    def views(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        cells, source = self.nonzeros(batch), source_codes(batch)
        teacher = tf.nn.relu(self._teacher(cells, source, training=True))
        student = tf.nn.relu(self._student(cells, source, training=True))
        if self.teacher_head is not None:
            teacher, student = self.teacher_head(teacher), self.student_head(student)
        return teacher, student

    def normalization_inputs(
        self, batch: Batch
    ) -> list[tuple[SourceBatchNormalization, tf.Tensor]]:
        cells = self.nonzeros(batch)
        return [
            (self.teacher_norm, self._attended(cells)),
            (self.student_norm, self._spread(cells)),
        ]

    def attention_weights(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """Attention of the teacher to each gene of each cell.

        Args:
            batch: As `ContrastiveModel` describes, not packed.

        Returns:
            Indices int32 [B, K] among the model's genes and their weights [B, K] (equation 4).
        """
        genes, values, rows = self.nonzeros(batch)
        return genes, self.attention.attention_weights(genes, self._scaled(genes, values), rows)

    def _scaled(self, genes: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        if not self.scale_genes:
            return values
        values = values * tf.cast(tf.gather(self.gene_scale, genes), values.dtype)
        return values if self.value_clip is None else tf.minimum(values, self.value_clip)

    def _spread(self, cells: Cells, training: bool = False) -> tf.Tensor:
        """Values over all genes [B, n_inputs], as the student sees them."""
        genes, values, rows = cells
        # Hiding nonzeros before spreading them is hiding genes: a hidden zero is a zero.
        values = self.student_mask(values, training=training)
        return scatter_to_dense(genes, values, self.n_inputs, rows)

    def _attended(self, cells: Cells, training: bool = False) -> tf.Tensor:
        """Sum of gene embeddings by attention [B, units], as the teacher sees the cell."""
        genes, values, rows = cells
        values = self.teacher_mask(self._scaled(genes, values), training=training)
        # The softmax over n genes makes the sum small; this keeps its scale whatever n is.
        return self.attention(genes, values, rows) * math.sqrt(self.n_inputs)

    def _teacher(self, cells: Cells, source: tf.Tensor, training: bool) -> tf.Tensor:
        cell = self._attended(cells, training)
        cell = self.teacher_norm(cell, source=source, training=training)
        return self.teacher_dense(self.teacher_dropout(cell, training=training))

    def _student(self, cells: Cells, source: tf.Tensor, training: bool) -> tf.Tensor:
        cell = self._spread(cells, training)
        cell = self.student_norm(cell, source=source, training=training)
        if self.value_clip is not None:
            cell = tf.clip_by_value(cell, -self.value_clip, self.value_clip)
        return self.student_dense(self.student_dropout(cell, training=training))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "units": self.units,
            "attention_units": self.attention_units,
            "hidden_units": self.hidden_units,
            "head_units": self.head_units,
            "mask_rate": self.mask_rate,
            "dropout": self.dropout,
            "value_clip": self.value_clip,
            "input_epsilon": self.input_epsilon,
            "scale_genes": self.scale_genes,
            "components": self.components,
            "readout": self.readout,
            "readout_activation": self.readout_activation,
        }


class _Seeds:
    """A sequence of seeds that follow from one."""

    def __init__(self, seed: int) -> None:
        self._next = seed * 10_007

    def __call__(self) -> int:
        self._next += 1
        return self._next
