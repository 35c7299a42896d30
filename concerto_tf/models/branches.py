"""What each modality of Concerto has of its own: attention, masks, scale, normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.layers import (
    GeneAttention,
    LogNormalize,
    RandomMask,
    SourceBatchNormalization,
    scatter_to_dense,
)
from concerto_tf.layers.source_normalization import pool_moments
from concerto_tf.models.batches import Batch, Cells
from concerto_tf.models.mlp import wide_start


@dataclass
class Branch:
    """The layers of one modality; the model that holds it owns their weights.

    Attributes:
        name: Name of the modality.
        n_inputs: Number of its features that the model looks at.
        normalize: Normalises its values; None where the model does so itself.
        attention: Of the teacher.
        teacher_mask: Hides features from the teacher.
        student_mask: Hides features from the student, behind their normalisation.
        student_norm: Normalises the student's input.
        branch_norm: Normalises what the attention gives, before modalities are summed.
        branch_dense: The student's own dense layer, before modalities are summed.
        scale: Weight [n_inputs] that the teacher's values are multiplied with, or None.
        clip: Largest absolute value after scaling, or None.
        input_gain: What the student's first dense layer has `standardized` multiplied with.
    """

    name: str
    n_inputs: int
    normalize: LogNormalize | None
    attention: GeneAttention
    teacher_mask: RandomMask
    student_mask: RandomMask
    student_norm: SourceBatchNormalization
    branch_norm: SourceBatchNormalization | None = None
    branch_dense: Any = None
    scale: Any = None
    clip: float | None = None
    input_gain: float = 1.0

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
        """The student's input [B, n_inputs], normalised by source."""
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

    def cells(self, batch: Batch) -> Cells | None:
        """Normalised values of a further modality, None if the batch does not have it at all."""
        if f"{self.name}/genes" not in batch:
            return None
        genes = tf.convert_to_tensor(batch[f"{self.name}/genes"])
        return genes, self.normalize(batch[f"{self.name}/values"]), None


def show(present: tf.Tensor, hide: RandomMask, training: bool) -> tf.Tensor:
    """Which modalities a network sees of each cell [B, M], of those that it has [B, M], bool."""
    shown = hide(tf.cast(present, tf.float32), training=training) > 0
    # A cell of which everything would be hidden shows what it has.
    return tf.where(tf.reduce_any(shown, axis=1, keepdims=True), shown, present)


def checked_modalities(
    modalities: Mapping[str, Mapping[str, Any]] | None, main: str
) -> dict[str, dict[str, Any]]:
    """Further modalities as a configuration holds them.

    Args:
        modalities: Name to ``vocabulary`` (identifiers of its features) and ``target_sum``.
        main: Name of the model's first modality.

    Returns:
        The same, complete and of plain types.

    Raises:
        InputError: A modality is the main one, or has no features.
    """
    checked = {}
    for name, of in (modalities or {}).items():
        vocabulary = list(map(str, of["vocabulary"]))
        if name == main or not vocabulary:
            raise InputError(f"modality {name!r} must be another than {main!r}, and have features.")
        checked[str(name)] = {"vocabulary": vocabulary, "target_sum": of.get("target_sum", 1e4)}
    return checked


def build_branch(
    prefix: str,
    name: str,
    n_inputs: int,
    *,
    n_sources: int,
    units: int,
    attention_units: int,
    hidden_units: int,
    mask_rate: float,
    input_epsilon: float,
    clip: float | None,
    normalize: LogNormalize | None,
    several: bool,
    scale_inputs: bool,
    aligned: bool,
    seed: Callable[[], int],
) -> Branch:
    """Creates the layers of one modality, not yet built.

    Args:
        prefix: Put before the layers' names.
        name: Name of the modality.
        n_inputs: Number of its features.
        n_sources: Number of sources.
        units: Width of the feature embeddings.
        attention_units: Width of the attention's hidden layer.
        hidden_units: Width of the student's dense layers.
        mask_rate: Share of the features that each view hides.
        input_epsilon: Added to the variance of the student's input.
        clip: See `Branch`.
        normalize: See `Branch`.
        several: Whether the model has several modalities.
        scale_inputs: Whether the student's input is divided by the root of its width.
        aligned: Whether normalisations have factors and offsets of sources.
        seed: Gives the next seed.
    """
    glorot, normal = keras.initializers.GlorotUniform, keras.initializers.RandomNormal
    attention = GeneAttention(
        n_inputs,
        units,
        attention_units,
        embeddings_initializer=normal(stddev=1.0, seed=seed()),
        kernel_initializer=glorot(seed=seed()),
        # Small, so that attention begins near uniform.
        context_initializer=normal(stddev=0.1, seed=seed()),
        name=f"{prefix}attention",
    )
    branch = Branch(
        name,
        n_inputs,
        normalize,
        attention,
        RandomMask(mask_rate, seed=seed(), name=f"{prefix}teacher_mask"),
        RandomMask(mask_rate, seed=seed(), exact=True, name=f"{prefix}student_mask"),
        SourceBatchNormalization(
            n_sources, epsilon=input_epsilon, aligned=aligned, name=f"{prefix}student_norm"
        ),
        clip=clip,
        input_gain=n_inputs**-0.5 if scale_inputs else 1.0,
    )
    if several:
        branch.branch_norm = SourceBatchNormalization(
            n_sources, epsilon=1e-5, aligned=aligned, name=f"{prefix}branch_norm"
        )
        branch.branch_dense = keras.layers.Dense(
            hidden_units,
            use_bias=False,
            kernel_initializer=wide_start(branch.input_gain, seed()),
            name=f"{prefix}branch_dense",
        )
    return branch
