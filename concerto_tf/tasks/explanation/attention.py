"""Which genes the teacher's attention reads in a cell, and in a group of cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf.errors import InputError
from concerto_tf.models.encoder import Attentive, modality_input
from concerto_tf.numerics.specificity import GroupSums
from concerto_tf.records import CellSet
from concerto_tf.records.batch import Minibatch, key
from concerto_tf.tasks.explanation.parts import CellBatch, Part, cells_of, groups_of, parts_of

_QUANTITIES = ("weight", "attention", "value")


@dataclass(frozen=True)
class Read:
    """What a batch's cells express in one modality, as flat arrays over the nonzeros.

    Attributes:
        cell: Place of the cell in the batch.
        gene: The gene, among those that the model looks at.
        attention: Its attention over that of a gene with value 0 in the same cell (equation 4).
        value: Its normalized value.
    """

    cell: np.ndarray
    gene: np.ndarray
    attention: np.ndarray
    value: np.ndarray

    @property
    def weight(self) -> np.ndarray:
        """What the gene brings into the teacher's sum (equation 5)."""
        return self.attention * self.value


def attention_reader(model: Attentive, parts: Sequence[Part]) -> Callable[[CellBatch], list[Read]]:
    """Makes what reads each modality of a batch of cells."""

    @tf.autograph.experimental.do_not_convert
    def look(batch: Any) -> list[Any]:
        # One more place without a value: its attention is that of a silent gene.
        batch = dict(batch)
        for name, _ in Minibatch(batch):
            for field in ("genes", "values"):
                batch[key(name, field)] = tf.pad(batch[key(name, field)], [[0, 0], [0, 1]])
        found = []
        for part in parts:
            genes, weights = model.attention_weights(batch, part.name)
            cells = modality_input(model, part.name).cells(Minibatch(batch))
            if cells is None:
                raise InputError(f"the cells have no {part.name}, which has attention")
            relative = weights / weights[:, -1:]
            found.append((genes, tf.cast(relative, tf.float32), tf.cast(cells.values, tf.float32)))
        return found

    step = tf.function(look, reduce_retracing=True)

    def read(cells: CellBatch) -> list[Read]:
        found = []
        for genes, relative, values in step(cells.numeric):
            genes, relative, values = genes.numpy(), relative.numpy(), values.numpy()
            at = np.nonzero((values != 0) & (cells.row >= 0)[:, np.newaxis])
            found.append(Read(at[0], genes[at], relative[at], values[at]))
        return found

    return read


def sums_of_groups(
    model: Attentive, records: CellSet, label: str
) -> tuple[list[str], list[tuple[Part, dict[str, GroupSums]]]]:
    """Sums over the cells of each group of what attention reads of a gene.

    Args:
        model: A Concerto.
        records: Cells with the model's genes and a label.
        label: Label that names the groups.

    Returns:
        Names of the groups, and for each modality the sums of ``weight``, ``attention`` (beyond
        the 1 of a silent gene) and ``value``.

    Raises:
        InputError: There is no such label, or the model's genes are not there.
    """
    groups, parts = groups_of(records, label), parts_of(model, records)
    sums = [
        {name: GroupSums(len(groups), len(part.features)) for name in _QUANTITIES} for part in parts
    ]
    read_in = attention_reader(model, parts)
    for cells in cells_of(model, records, label):
        for number, (of_part, read) in enumerate(zip(sums, read_in(cells), strict=True)):
            # A cell that lacks a further modality has no part in its means.
            lacks = number > 0 and np.bincount(read.cell, minlength=len(cells.group)) == 0
            having = np.where(lacks, -1, cells.group)
            quantities = (read.weight, read.attention - 1.0, read.value)
            for name, x in zip(_QUANTITIES, quantities, strict=True):
                of_part[name].add(having, read.cell, read.gene, x)
    return groups, list(zip(parts, sums, strict=True))
