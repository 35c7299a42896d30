"""How far each gene moves a cell, or a group of cells, in the embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf.models.encoder import Encoder
from concerto_tf.numerics.unit_rows import unit_rows
from concerto_tf.records import CellSet
from concerto_tf.records.batch import Batch
from concerto_tf.tasks.embed import Progress
from concerto_tf.tasks.explanation.parts import CellBatch, cells_of
from concerto_tf.tasks.explanation.readers import Reader

#: Points of the path along which gradients are taken where an embedding is not linear.
_POINTS = 20
#: Cells at a time there: a teacher attends to all genes of each.
_CELLS = 64


class Means:
    """Mean inputs and embeddings of groups of cells.

    Args:
        n_groups: Number of groups.
        width: Number of a model's inputs.
        dim: Width of its embeddings.

    Attributes:
        cells: Number of cells of each group [groups].
    """

    def __init__(self, n_groups: int, width: int, dim: int) -> None:
        self.cells = np.zeros(n_groups, np.int64)
        self._inputs = np.zeros((n_groups, width))
        self._embeddings = np.zeros((n_groups, dim))

    def add(self, group: np.ndarray, inputs: np.ndarray, z: np.ndarray) -> None:
        """Adds cells of these groups [B], of which -1 is none."""
        own = group >= 0
        for code in np.unique(group[own]):
            of_group = group == code
            self.cells[code] += of_group.sum()
            self._inputs[code] += inputs[of_group].sum(0, dtype=np.float64)
            self._embeddings[code] += z[of_group].sum(0, dtype=np.float64)

    @property
    def of_all(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean input [width] and mean embedding [dim] of all cells."""
        n = max(self.cells.sum(), 1)
        return self._inputs.sum(0) / n, self._embeddings.sum(0) / n

    def beside(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean input of all other cells, and the unit vector from there to each group.

        Returns:
            [groups, width], and [groups, dim] in the embedding: 0 for a group without others.
        """
        n, others = self.cells[:, np.newaxis], (self.cells.sum() - self.cells)[:, np.newaxis]
        rest = (self._inputs.sum(0) - self._inputs) / np.maximum(others, 1)
        there = (self._embeddings.sum(0) - self._embeddings) / np.maximum(others, 1)
        away = self._embeddings / np.maximum(n, 1) - there
        return rest, unit_rows(np.where((n > 0) & (others > 0), away, 0))


def mean_inputs(
    model: Encoder,
    records: CellSet,
    key: str | None,
    n_groups: int,
    progress: Progress | None = None,
) -> Means:
    """Means over the cells of each group; see `Means`."""
    reader = Reader(model)
    means = Means(n_groups, reader.width, reader.dim)
    look = _looking(reader)
    for cells in cells_of(model, records, key, _batch_size(reader, records), progress):
        means.add(cells.group, *(x.numpy() for x in look(cells.numeric)))
    return means


def contributions(
    model: Encoder,
    records: CellSet,
    key: str | None,
    means: Means,
    progress: Progress | None = None,
) -> Iterator[tuple[CellBatch, np.ndarray, np.ndarray]]:
    """What each gene contributes to where each cell lies.

    The contributions of all genes add up to how far a cell lies from its baseline in a direction:
    with groups, from the mean of all other cells towards the mean of its group; without, from the
    mean of all cells towards the cell itself, which is its whole distance. They are the model's
    weights times what the inputs differ by where the embedding is linear, and integrated gradients
    otherwise.

    Args:
        model: What embeds them.
        records: Cells with the model's genes.
        key: Label that names the groups; None for none.
        means: From `mean_inputs`.
        progress: Called with the number of cells done and of all cells.

    Yields:
        Cells, their contributions [B, inputs], and how far each input lies above the baseline.

    Reference:
        Sundararajan et al., "Axiomatic Attribution for Deep Networks", arXiv:1703.01365 (2017).
    """
    reader = Reader(model)
    look, attribute = _looking(reader), _attributing(reader)
    center, middle = means.of_all
    rest, towards = means.beside()
    for cells in cells_of(model, records, key, _batch_size(reader, records), progress):
        if key is None:
            z = look(cells.numeric)[1].numpy()
            base, along = np.tile(center, (len(z), 1)), unit_rows(z - middle)
        else:
            base, along = rest[cells.group], towards[cells.group]
        given = (tf.constant(x, tf.float32) for x in (base, along))
        yield cells, *(x.numpy() for x in attribute(cells.numeric, *given))


def group_contributions(
    model: Encoder, records: CellSet, key: str, means: Means
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean `contributions` in each group of cells.

    Args:
        model, records, key, means: As there.

    Returns:
        Contributions [groups, inputs], how far each input lies above all other cells
        [groups, inputs], and the group of each row of the input, -1 for none.
    """
    n = np.maximum(means.cells, 1)[:, np.newaxis]
    shape = len(means.cells), Reader(model).width
    weights, gaps = np.zeros(shape), np.zeros(shape)
    found = []
    for cells, weight, gap in contributions(model, records, key, means):
        for code in np.unique(cells.group[cells.group >= 0]):
            own = cells.group == code
            weights[code] += weight[own].sum(0, dtype=np.float64)
            gaps[code] += gap[own].sum(0, dtype=np.float64)
        found.append((cells.row[cells.row >= 0], cells.group[cells.row >= 0]))
    rows, groups = (np.concatenate(part) for part in zip(*found, strict=True))
    group = np.full(rows.max() + 1, -1)
    group[rows] = groups
    return weights / n, gaps / n, group


def by_rank(weight: np.ndarray, gap: np.ndarray, measured: np.ndarray | None = None) -> np.ndarray:
    """Genes by rank: what is higher than elsewhere by its contribution, then what is lower.

    Args:
        weight: Contributions [..., F].
        gap: How far each gene lies above elsewhere [..., F].
        measured: Which genes were measured [F]; the others come last. None for all.

    Returns:
        Their indices [..., F], int64.

    Example:

    >>> by_rank(np.array([0.1, 0.4, 0.9]), np.array([2.0, 1.0, -3.0])).tolist()
    [1, 0, 2]
    """
    unmeasured = np.zeros(weight.shape[-1], bool) if measured is None else ~measured
    return np.lexsort((-weight, gap <= 0, np.broadcast_to(unmeasured, weight.shape)), axis=-1)


def _looking(reader: Reader) -> Any:
    """A function of a minibatch that gives its inputs and its embeddings."""

    def look(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        inputs = reader.inputs(batch)
        return inputs, reader.read(inputs, batch)

    return _traced(look)


def _attributing(reader: Reader) -> Any:
    """A function of a minibatch, baselines and directions that gives `contributions`."""
    points = 1 if reader.linear else _POINTS

    def attribute(batch: Batch, base: tf.Tensor, along: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        gap = reader.inputs(batch) - base
        slope = tf.zeros_like(gap)
        for point in range(points):
            at = base + gap * ((point + 0.5) / points)
            with tf.GradientTape() as tape:
                tape.watch(at)
                far = tf.reduce_sum(reader.read(at, batch) * along)
            slope += tape.gradient(far, at)
        return gap * slope / points, gap

    return _traced(attribute)


def _traced(step: Any) -> Any:
    """A TensorFlow function; AutoGraph finds none of Python's control flow over tensors in it."""
    return tf.function(tf.autograph.experimental.do_not_convert(step), reduce_retracing=True)


def _batch_size(reader: Reader, records: CellSet) -> int | None:
    return None if reader.linear else min(_CELLS, records.n_cells)
