"""What each modality of Concerto has of its own: attention, masks, scale, normalization."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.layers import GeneAttention, RandomMask, SourceBatchNormalization, scatter_to_dense
from concerto_tf.layers.source_normalization import pool_moments
from concerto_tf.models.dense.mlp import scaled_glorot
from concerto_tf.models.modality import Cells, ModalityInput
from concerto_tf.records.batch import Minibatch


@dataclass(frozen=True)
class Architecture:
    """Sizes and options of the layers of a Concerto.

    Attributes:
        n_sources: Number of sources.
        units: Width of the feature embeddings.
        attention_units: Width of the attention's hidden layer.
        hidden_units: Width of the teacher's and the student's dense layer.
        head_units: Width of the projections that the loss is taken on; None for none.
        mask_rate: Share of the features that each view hides.
        dropout: Dropout before the dense layers.
        modality_dropout: Share of the cells of which each view hides one modality.
        input_epsilon: Added to the variance of the student's input.
        clip: See `Branch`.
        scale_inputs: Whether the student's input is divided by the root of its width.
        aligned: Whether normalizations have factors and offsets of sources.
    """

    n_sources: int
    units: int
    attention_units: int
    hidden_units: int
    head_units: int | None
    mask_rate: float
    dropout: float
    modality_dropout: float
    input_epsilon: float
    clip: float | None
    scale_inputs: bool
    aligned: bool


@dataclass
class Branch:
    """The layers of one modality; the model that holds it owns their weights.

    Attributes:
        modality: What the model looks at in the modality.
        attention: Of the teacher.
        teacher_mask: Hides features from the teacher.
        student_mask: Hides features from the student, behind their normalization.
        student_norm: Normalizes the student's input.
        branch_norm: Normalizes what the attention gives, before modalities are summed; None
            where there is one modality.
        branch_dense: The student's own dense layer, before modalities are summed; or None.
        scale: Weight [n_inputs] that the teacher's values are multiplied with, or None.
        clip: Largest absolute value after scaling, or None.
        input_gain: What the student's first dense layer has `standardized` multiplied with.
    """

    modality: ModalityInput
    attention: GeneAttention
    teacher_mask: RandomMask
    student_mask: RandomMask
    student_norm: SourceBatchNormalization
    branch_norm: SourceBatchNormalization | None = None
    branch_dense: Any = None
    scale: Any = None
    clip: float | None = None
    input_gain: float = 1.0

    @property
    def name(self) -> str:
        """Name of the modality."""
        return self.modality.name

    @property
    def n_inputs(self) -> int:
        """Number of its features that the model looks at."""
        return self.modality.n_inputs

    def look(self, batch: Minibatch) -> Seen:
        """What a minibatch has of the modality."""
        of = self.modality
        return Seen(self, of.cells(batch), of.present(batch), of.measured(batch))

    def scaled(self, genes: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """Values [B, K] as the teacher sees them."""
        if self.scale is None:
            return values
        values = values * tf.cast(tf.gather(self.scale, genes), values.dtype)
        return values if self.clip is None else tf.minimum(values, self.clip)

    def unmeasured(self, measured: tf.Tensor | None) -> tf.Tensor | None:
        """The mean, as the teacher sees it, of features that were not measured [n_inputs]."""
        if measured is None:
            return None
        mean, _ = pool_moments(self.student_norm.moving_moments)
        mean = self.scaled(tf.range(self.n_inputs), mean)
        return tf.where(measured, tf.zeros_like(mean), mean)

    def spread(self, cells: Cells) -> tf.Tensor:
        """Values over all features [B, n_inputs]."""
        genes, values, rows = cells
        return scatter_to_dense(genes, values, self.n_inputs, rows)

    def standardized(
        self,
        cells: Cells,
        source: tf.Tensor,
        training: bool = False,
        measured: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """The student's input [B, n_inputs], normalized by source."""
        x = self.spread(cells)
        x = self.student_norm(x, source=source, training=training, measured=measured)
        if self.clip is not None:
            x = tf.clip_by_value(x, -self.clip, self.clip)
        # Behind the statistics, which so are those of the whole cells that are embedded later: a
        # gene of deeply sequenced cells would vary by being hidden more than by anything else.
        return self.student_mask(x, training=training)

    def attended(
        self, cells: Cells, training: bool = False, measured: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Sum of feature embeddings by attention [B, units], as the teacher sees the cell."""
        genes, values, rows = cells
        values = self.teacher_mask(self.scaled(genes, values), training=training)
        attended = self.attention(genes, values, rows, self.unmeasured(measured))
        # The softmax over n genes makes the sum small; this keeps its scale whatever n is.
        return attended * math.sqrt(self.n_inputs)

    def teacher_part(
        self, cells: Cells, measured: tf.Tensor | None, source: tf.Tensor, training: bool
    ) -> tf.Tensor:
        """The modality's part [B, units] of what the teacher sums; equation 11."""
        part = self.attended(cells, training, measured)
        if self.branch_norm is not None:
            part = self.branch_norm(part, source=source, training=training)
        return part

    def student_part(
        self, cells: Cells, measured: tf.Tensor | None, source: tf.Tensor, training: bool
    ) -> tf.Tensor:
        """The modality's part [B, hidden_units] of what the student sums; equation 10.

        Where there is one modality, its features [B, n_inputs].
        """
        return self.projected(self.standardized(cells, source, training, measured))

    def projected(self, standardized: tf.Tensor) -> tf.Tensor:
        """The modality's part of what the student sums, of `standardized` values [B, n_inputs]."""
        part = standardized * self.input_gain
        return part if self.branch_dense is None else self.branch_dense(part)


class Seen(NamedTuple):
    """What a minibatch has of a modality.

    Attributes:
        branch: The layers of the modality.
        cells: Normalized values; None if the minibatch does not have the modality at all.
        present: Which cells have any value in it, bool [B].
        measured: Which features were measured, bool [n_inputs]; None for all.
    """

    branch: Branch
    cells: Cells | None
    present: tf.Tensor
    measured: tf.Tensor | None


def source_of(shown: tf.Tensor | None, source: tf.Tensor) -> tf.Tensor:
    """Source codes [B]; -1 for cells that lack a modality, which take no part in its statistics."""
    return source if shown is None else tf.where(shown, source, -1)


def at_mean(part: tf.Tensor, shown: tf.Tensor | None) -> tf.Tensor:
    """A part [B, d] of a sum; cells that lack the modality stand at its mean."""
    return part if shown is None else tf.where(shown[:, tf.newaxis], part, tf.zeros_like(part))


def shown_of(
    seen: Sequence[Seen], hide: RandomMask | None, training: bool
) -> list[tuple[Branch, Cells, tf.Tensor | None, tf.Tensor | None]]:
    """The modalities that a minibatch has, as `Seen`, and which cells show each to a network [B].

    Args:
        seen: The modalities of the model.
        hide: Hides modalities of cells; None where there is one, which all cells show.
        training: Whether to hide any.
    """
    shown: Sequence[tf.Tensor | None] = [None]
    if hide is not None:
        shown = tf.unstack(show(tf.stack([one.present for one in seen], 1), hide, training), axis=1)
    parts = zip(seen, shown, strict=True)
    return [
        (one.branch, one.cells, one.measured, part) for one, part in parts if one.cells is not None
    ]


def show(present: tf.Tensor, hide: RandomMask, training: bool) -> tf.Tensor:
    """Which modalities a network sees of each cell [B, M], of those that it has [B, M], bool."""
    shown = hide(tf.cast(present, tf.float32), training=training) > 0
    # A cell of which everything would be hidden shows what it has.
    return tf.where(tf.reduce_any(shown, axis=1, keepdims=True), shown, present)


def build_branch(
    modality: ModalityInput, of: Architecture, several: bool, seed: Callable[[], int]
) -> Branch:
    """Creates the layers of one modality, not yet built.

    Args:
        modality: What the model looks at in it. Its name begins the layers' names.
        of: What they are made from.
        several: Whether the model has several modalities.
        seed: Gives the next seed.
    """
    prefix, n_inputs = f"{modality.name}_", modality.n_inputs
    glorot, normal = keras.initializers.GlorotUniform, keras.initializers.RandomNormal
    attention = GeneAttention(
        n_inputs,
        of.units,
        of.attention_units,
        embeddings_initializer=normal(stddev=1.0, seed=seed()),
        kernel_initializer=glorot(seed=seed()),
        # Small, so that attention begins near uniform.
        context_initializer=normal(stddev=0.1, seed=seed()),
        name=f"{prefix}attention",
    )
    branch = Branch(
        modality,
        attention,
        RandomMask(of.mask_rate, seed=seed(), name=f"{prefix}teacher_mask"),
        RandomMask(of.mask_rate, seed=seed(), exact=True, name=f"{prefix}student_mask"),
        SourceBatchNormalization(
            of.n_sources, epsilon=of.input_epsilon, aligned=of.aligned, name=f"{prefix}student_norm"
        ),
        clip=of.clip,
        input_gain=n_inputs**-0.5 if of.scale_inputs else 1.0,
    )
    if several:
        branch.branch_norm = SourceBatchNormalization(
            of.n_sources, epsilon=1e-5, aligned=of.aligned, name=f"{prefix}branch_norm"
        )
        branch.branch_dense = keras.layers.Dense(
            of.hidden_units,
            use_bias=False,
            kernel_initializer=scaled_glorot(branch.input_gain, seed()),
            name=f"{prefix}branch_dense",
        )
    return branch
