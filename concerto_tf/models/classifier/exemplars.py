"""Labelled cells that a classifier keeps, to look at them again as a query was measured."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from concerto_tf.models.modality import ModalityInput
from concerto_tf.numerics.turns import place_in_group
from concerto_tf.records.batch import ROW, SOURCE, Batch, Minibatch, ModalityBatch, label_key
from concerto_tf.records.conversion.writer import smallest_dtype

#: Cells kept, at most: of each type to learn from, of all types, and of those held out.
_OF_TYPE, _LEARNED, _HELD_OUT = 300, 3_000, 1_000
_BATCH_CELLS = 256


@dataclass(frozen=True)
class Counts:
    """Values of cells in one modality, row by row.

    Attributes:
        genes: Indices in the vocabulary, ascending within a cell.
        values: Their values.
        start: Where the values of each cell begin, and where the last ones end [n + 1].
    """

    genes: np.ndarray
    values: np.ndarray
    start: np.ndarray

    def of_cells(self, n_cells: int, n_genes: int) -> bool:
        """Whether these are values of so many cells and genes."""
        ends = len(self.genes) == len(self.values) == self.start[-1] and self.start[0] == 0
        rising = len(self.start) == n_cells + 1 and bool((np.diff(self.start) >= 0).all())
        within = self.genes.min(initial=0) >= 0 and self.genes.max(initial=0) < n_genes
        return bool(ends and rising and within and np.isfinite(self.values).all())


@dataclass(frozen=True)
class Exemplars:
    """Labelled cells with all that was measured of them.

    Where a query was measured for a part of the genes, or less deeply, types are told from such
    cells looked at in the same way.

    Attributes:
        label: Cell type of each cell [n].
        held_out: Whether a cell was held out of training, bool [n].
        source: Source code of each cell [n].
        counts: What was measured, by modality.
    """

    label: np.ndarray
    held_out: np.ndarray
    source: np.ndarray
    counts: Mapping[str, Counts]

    @property
    def n_cells(self) -> int:
        """Number of cells n."""
        return len(self.label)

    @classmethod
    def of(
        cls, data: Iterable[Batch], rows: np.ndarray, codes: np.ndarray, held_out: np.ndarray
    ) -> Exemplars:
        """Keeps some of the cells of minibatches.

        Args:
            data: Minibatches with the genes of the whole vocabulary, a cell in its own row.
            rows: Rows of the cells to keep; see `chosen_rows`.
            codes: Cell type of each row.
            held_out: Which rows were held out, bool.
        """
        kept: list[np.ndarray] = []
        sources: list[np.ndarray] = []
        parts: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
        for batch in data:
            row = np.asarray(batch[ROW])
            mine = np.isin(row, rows)
            if not mine.any():
                continue
            view = Minibatch(batch)
            kept.append(row[mine])
            sources.append(view.source.numpy()[mine])
            for name, held in view:
                genes, values = np.asarray(held.genes)[mine], np.asarray(held.values)[mine]
                there = values != 0
                part = (genes[there], values[there], there.sum(axis=1))
                parts.setdefault(name, []).append(part)
        row = np.concatenate(kept)
        counts = {}
        for name, found in parts.items():
            genes, values, sizes = (np.concatenate(part) for part in zip(*found, strict=True))
            start = np.concatenate([[0], np.cumsum(sizes)])
            genes, values = (x.astype(smallest_dtype(x)) for x in (genes, values))
            counts[name] = Counts(genes, values, start)
        return cls(codes[row], held_out[row], np.concatenate(sources), counts)

    def __iter__(self) -> Iterator[Batch]:
        """Minibatches of the cells, of one shape, without labels."""
        width = {name: int(np.diff(of.start).max(initial=1)) for name, of in self.counts.items()}
        for first in range(0, self.n_cells, _BATCH_CELLS):
            at = np.arange(first, first + _BATCH_CELLS)
            real = at < self.n_cells
            at = np.minimum(at, self.n_cells - 1)
            batch: Batch = {ROW: np.where(real, at, -1), SOURCE: self.source[at].astype(np.int32)}
            for name, of in self.counts.items():
                place = np.arange(width[name])
                inside = place < np.diff(of.start)[at, np.newaxis]
                where = np.where(inside, of.start[at, np.newaxis] + place, 0)
                padded = ModalityBatch(
                    np.where(inside, of.genes[where], 0).astype(np.int32),
                    np.where(inside, of.values[where], 0).astype(np.float32),
                )
                batch |= padded.entries(name)
            yield batch

    def arrays(self) -> dict[str, np.ndarray]:
        """All that it holds, by name."""
        held = {"label": self.label, "held_out": self.held_out, "source": self.source}
        for name, of in self.counts.items():
            held |= {f"{name}/{field}": value for field, value in vars(of).items()}
        return held

    def pack(self) -> np.ndarray:
        """All of it as bytes, compressed; uint8."""
        held: dict[str, Any] = self.arrays()
        file = io.BytesIO()
        np.savez_compressed(file, **held)
        return np.frombuffer(file.getvalue(), np.uint8)

    def check(self, n_types: int, inputs: Iterable[ModalityInput]) -> None:
        """Raises ValueError where these can be no cells of a classifier.

        Args:
            n_types: Number of its cell types.
            inputs: The modalities that it looks at.
        """
        n_genes = {one.name: len(one.vocabulary) for one in inputs}
        n = self.n_cells
        sound = n > 0 and len(self.held_out) == len(self.source) == n
        sound = sound and bool(0 <= self.label.min() and self.label.max() < n_types)
        sound = sound and all(
            of.of_cells(n, n_genes.get(name, 0)) for name, of in self.counts.items()
        )
        if not sound:
            raise ValueError("its labelled cells are none of its types and genes")

    @classmethod
    def unpack(cls, packed: np.ndarray) -> Exemplars:
        """Of what `pack` gave."""
        with np.load(io.BytesIO(packed.tobytes()), allow_pickle=False) as held:
            names = [key.removesuffix("/start") for key in held if key.endswith("/start")]
            fields = ("genes", "values", "start")
            counts = {
                name: Counts(*(held[f"{name}/{field}"] for field in fields)) for name in names
            }
            return cls(held["label"], held["held_out"], held["source"], counts)


def chosen_rows(codes: np.ndarray, held_out: np.ndarray, seed: int = 0) -> np.ndarray:
    """Rows of the labelled cells to keep.

    Args:
        codes: Cell type of each row; negative without one.
        held_out: Which rows were held out, bool.
        seed: Seed of the choice.

    Returns:
        Rows, in random order: of each type 300 to learn from, fewer where all would be more than
        3,000, and 1,000 of those held out.
    """
    order = np.random.default_rng(seed).permutation(len(codes))
    learned = order[(codes[order] >= 0) & ~held_out[order]]
    place = place_in_group(codes[learned])
    turns = np.argsort(place, kind="stable")
    few = learned[turns[place[turns] < _OF_TYPE]][:_LEARNED]
    both = np.concatenate([few, order[held_out[order]][:_HELD_OUT]])
    return np.random.default_rng(seed).permutation(both)


@dataclass(frozen=True)
class Labelled:
    """Minibatches with labels of some of their cells, to be read more than once.

    Attributes:
        batches: The minibatches.
        label_key: What the labels are called.
        codes: Label of each row; negative for none.
    """

    batches: list[Batch]
    label_key: str
    codes: np.ndarray

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            row = batch[ROW]
            label = np.where(row >= 0, self.codes[np.maximum(row, 0)], -1)
            yield {**batch, label_key(self.label_key): np.maximum(label, -1)}
