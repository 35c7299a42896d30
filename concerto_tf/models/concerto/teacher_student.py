"""The teacher and the student of Concerto, over the branches of the modalities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.layers import RandomMask, SourceBatchNormalization
from concerto_tf.models.concerto.branches import (
    Architecture,
    Branch,
    Seen,
    at_mean,
    build_branch,
    shown_of,
    source_of,
)
from concerto_tf.models.dense.mlp import scaled_glorot
from concerto_tf.models.modality import ModalityInput
from concerto_tf.records.batch import Minibatch


@dataclass
class Networks:
    """The layers of both networks; the model that holds them owns their weights.

    Attributes:
        branches: Those of each modality.
        teacher_norm: Normalizes what the teacher sums over modalities.
        teacher_dropout: In front of its dense layer.
        teacher_dense: Its dense layer.
        student_dropout: In front of the student's dense layer.
        student_dense: Its dense layer.
        teacher_head: Projection that only the loss looks at, or None.
        student_head: The student's.
        joint_norm: Normalizes what the student sums over modalities; None where there is one.
        teacher_hide: Hides modalities from the teacher; None where there is one.
        student_hide: Hides modalities from the student; None where there is one.
    """

    branches: Sequence[Branch]
    teacher_norm: SourceBatchNormalization
    teacher_dropout: RandomMask
    student_dropout: RandomMask
    teacher_dense: Any
    student_dense: Any
    teacher_head: Any = None
    student_head: Any = None
    joint_norm: SourceBatchNormalization | None = None
    teacher_hide: RandomMask | None = None
    student_hide: RandomMask | None = None

    @property
    def layers(self) -> list[Any]:
        """All layers, for the model to own."""
        of_branches = [layer for branch in self.branches for layer in vars(branch).values()]
        both = [*of_branches, *vars(self).values()]
        return [layer for layer in both if isinstance(layer, keras.layers.Layer)]

    @property
    def heads(self) -> list[Any]:
        """The projections that only the loss looks at."""
        return [head for head in (self.teacher_head, self.student_head) if head is not None]

    @property
    def several(self) -> bool:
        """Whether there are several modalities."""
        return len(self.branches) > 1

    def build(self) -> None:
        """Creates all weights: their shapes are known without any data."""
        n, units = len(self.branches), self.branches[0].attention.units
        hidden = self.teacher_dense.units
        shared = hidden if self.several else self.branches[0].n_inputs
        widths: list[tuple[Any, int | None]] = [
            (self.teacher_norm, units),
            (self.teacher_dropout, units),
            (self.student_dropout, shared),
            (self.teacher_dense, units),
            (self.student_dense, shared),
            (self.teacher_head, hidden),
            (self.student_head, hidden),
            (self.joint_norm, shared),
            (self.teacher_hide, n),
            (self.student_hide, n),
        ]
        for branch in self.branches:
            widths += [
                (branch.attention, None),
                (branch.teacher_mask, None),
                (branch.student_mask, None),
                (branch.student_norm, branch.n_inputs),
                (branch.branch_norm, units),
                (branch.branch_dense, branch.n_inputs),
            ]
        for layer, width in widths:
            if layer is not None:
                layer.build((None, width))

    def look(self, batch: Minibatch) -> list[Seen]:
        """What a minibatch has of each modality.

        Raises:
            InputError: It has none of them.
        """
        seen = [branch.look(batch) for branch in self.branches]
        if all(one.cells is None for one in seen):
            names = " or ".join(branch.name for branch in self.branches)
            raise InputError(f"the cells have no {names}")
        return seen

    def values(self, batch: Minibatch) -> list[tf.Tensor]:
        """Normalized values [B, features] of each modality, NaN where a cell lacks it."""
        parts = []
        for branch, cells, present, _ in self.look(batch):
            x = tf.zeros([1, branch.n_inputs]) if cells is None else branch.spread(cells)
            x = tf.cast(x, tf.float32)
            parts.append(tf.where(present[:, tf.newaxis], x, float("nan")) if self.several else x)
        return parts

    def standardized(self, batch: Minibatch, dtype: Any) -> tf.Tensor:
        """The features of all modalities side by side, as the student takes them in.

        Zeros for a modality that a cell lacks.
        """
        source, parts = batch.source, []
        for branch, cells, present, measured in self.look(batch):
            if cells is None:
                part = tf.zeros([tf.shape(source)[0], branch.n_inputs], dtype)
            else:
                part = at_mean(branch.standardized(cells, source, measured=measured), present)
            parts.append(part)
        return tf.concat(parts, axis=1)

    def teacher(self, seen: list[Seen], source: tf.Tensor, training: bool) -> tf.Tensor:
        """The teacher's dense layer [B, hidden_units], before its activation."""
        parts = [
            at_mean(branch.teacher_part(cells, measured, source_of(shown, source), training), shown)
            for branch, cells, measured, shown in shown_of(seen, self.teacher_hide, training)
        ]
        cell = self.teacher_norm(tf.add_n(parts), source=source, training=training)
        return self.teacher_dense(self.teacher_dropout(cell, training=training))

    def student(self, seen: list[Seen], source: tf.Tensor, training: bool) -> tf.Tensor:
        """The student's dense layer [B, hidden_units], before its activation."""
        parts = [
            at_mean(branch.student_part(cells, measured, source_of(shown, source), training), shown)
            for branch, cells, measured, shown in shown_of(seen, self.student_hide, training)
        ]
        return self._joined(parts, source, training)

    def read_student(self, standardized: Sequence[tf.Tensor], source: tf.Tensor) -> tf.Tensor:
        """The student's dense layer [B, hidden_units] of `standardized` values by modality."""
        branches = zip(self.branches, standardized, strict=True)
        return self._joined([branch.projected(x) for branch, x in branches], source, False)

    def _joined(self, parts: Sequence[tf.Tensor], source: tf.Tensor, training: bool) -> tf.Tensor:
        cell = tf.add_n(parts)
        if self.joint_norm is not None:
            cell = self.joint_norm(cell, source=source, training=training)
        return self.student_dense(self.student_dropout(cell, training=training))


def build_networks(
    modalities: Sequence[ModalityInput], of: Architecture, seed: Callable[[], int]
) -> Networks:
    """Creates the layers of both networks, not yet built.

    Args:
        modalities: What the model looks at.
        of: What the layers are made from.
        seed: Gives the next seed.
    """
    several = len(modalities) > 1
    branches = [build_branch(modality, of, several, seed) for modality in modalities]

    def norm(name: str) -> SourceBatchNormalization:
        return SourceBatchNormalization(of.n_sources, epsilon=1e-5, aligned=of.aligned, name=name)

    def dense(name: str, width: int, gain: float = 1.0) -> keras.layers.Layer:
        return keras.layers.Dense(width, kernel_initializer=scaled_glorot(gain, seed()), name=name)

    def mask(name: str, rate: float, rescale: bool = True) -> RandomMask:
        return RandomMask(rate, rescale=rescale, seed=seed(), name=name)

    # Of several modalities each is scaled in its own branch.
    gain = 1.0 if several else branches[0].input_gain
    networks = Networks(
        branches,
        norm("teacher_norm"),
        mask("teacher_dropout", of.dropout),
        mask("student_dropout", of.dropout),
        dense("teacher_dense", of.hidden_units),
        dense("student_dense", of.hidden_units, gain),
    )
    if of.head_units is not None:
        networks.teacher_head = dense("teacher_head", of.head_units)
        networks.student_head = dense("student_head", of.head_units)
    if several:
        networks.joint_norm = norm("joint_norm")
        networks.teacher_hide = mask("teacher_hide", of.modality_dropout, rescale=False)
        networks.student_hide = mask("student_hide", of.modality_dropout, rescale=False)
    return networks
