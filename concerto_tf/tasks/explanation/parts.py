"""The modalities of cells that are explained, and the batches of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from concerto_tf.errors import Argument, InputError
from concerto_tf.models.encoder import Encoder, modality_input
from concerto_tf.records import CellSet
from concerto_tf.records.batch import CELL, ROW, Minibatch, label_key
from concerto_tf.records.manifest import check_label
from concerto_tf.tasks.embed import Progress
from concerto_tf.tasks.io.agreement import cell_batches, check_measured, seen_modalities

_log = logging.getLogger("concerto_tf")
#: Groups at most: sums over each are kept for all genes.
MOST_GROUPS = 1_000


@dataclass(frozen=True)
class Part:
    """A modality that is explained.

    Attributes:
        name: Its name.
        features: Names of the features that the model looks at, object [F].
        measured: Which of them were measured, bool [F].
        columns: Where they stand in what `Reader.inputs` gives.
    """

    name: str
    features: np.ndarray
    measured: np.ndarray
    columns: slice


def parts_of(model: Encoder, records: CellSet) -> list[Part]:
    """The modalities that both the model looks at and the records hold."""
    check_measured(model, records)
    seen, parts, first = seen_modalities(model, records), [], 0
    for one in model.modality_inputs:
        columns = slice(first, first + one.n_inputs)
        first = columns.stop
        if one.name not in seen:
            continue
        if one.n_inputs < len(one.vocabulary):
            _log.info(
                "the model looks at %d of its %d genes, and these are explained (train with %s to "
                "have all)",
                one.n_inputs,
                len(one.vocabulary),
                Argument("genes", "all", of="train"),
            )
        measured = one.chosen(records.measured(one.name))
        parts.append(Part(one.name, one.chosen(one.names), measured, columns))
    return parts


def groups_of(records: CellSet, key: str) -> list[str]:
    """The values of the label that cells are grouped by.

    Raises:
        InputError: There is no such label, or it has too many values.
    """
    check_label(records.name, records.labels, key)
    groups = records.labels[key]
    if len(groups) > MOST_GROUPS:
        raise InputError(
            f"{key!r} has {len(groups)} different values; group by a column of cell types or "
            "clusters"
        )
    return groups


@dataclass(frozen=True)
class CellBatch:
    """Cells of a minibatch, which may be filled up with rows of none.

    Attributes:
        numeric: What a model takes.
        row: Place of each cell in the input [B]; -1 where there is none.
        group: Group of each cell [B]; -1 for none. 0 for all where cells are not grouped.
        names: Barcodes, object [B]; empty where cells are grouped.
    """

    numeric: Any
    row: np.ndarray
    group: np.ndarray
    names: np.ndarray


def cells_of(
    model: Encoder,
    records: CellSet,
    key: str | None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Iterator[CellBatch]:
    """All cells, with the group that a label gives them.

    Args:
        model: What looks at them.
        records: Cells with the model's genes.
        key: The label; None for no groups.
        batch_size: Cells at a time.
        progress: Called with the number of cells done and of all cells.
    """
    measured = {
        name: of
        for name in seen_modalities(model, records)
        if not (of := records.measured(name)).all()
    }
    labels: Sequence[str] = [] if key is None else [key]
    data = cell_batches(model, records, batch_size, labels=labels, cells=key is None)
    done = 0
    with records.naming_damage():
        for batch in data:
            row = batch[ROW].numpy()
            group = np.zeros(len(row), np.int64) if key is None else batch[label_key(key)].numpy()
            names = batch[CELL].numpy() if key is None else np.zeros(0, object)
            yield CellBatch(
                _measured(Minibatch(batch).numeric, measured),
                row,
                np.where(row < 0, -1, group),
                names,
            )
            done = min(records.n_cells, done + len(row))
            if progress is not None:
                progress(done, records.n_cells)


def _measured(batch: Any, measured: dict[str, np.ndarray]) -> Any:
    """A batch that says which genes were measured, where not all were."""
    import tensorflow as tf

    from concerto_tf.records.batch import key

    return {**batch, **{key(name, "measured"): tf.constant(of) for name, of in measured.items()}}


def expressed(model: Encoder, batch: Any, part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What cells express of a modality: the cell, the gene and the normalized value of each [n].

    Genes are counted among those that the model looks at.
    """
    cells = modality_input(model, part.name).cells(Minibatch(batch))
    if cells is None:
        raise InputError(f"the cells have no {part.name}, which is to be explained")
    genes, values = cells.genes.numpy(), np.asarray(cells.values, np.float32)
    at = np.nonzero(values)
    return at[0], genes[at], values[at]
