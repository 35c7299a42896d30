"""The cells of an open input in minibatches, straight from its chunks: nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.records.batch import CELL, RNA, ROW, SOURCE, Batch, Genes, ModalityBatch, label_key
from concerto_tf.records.conversion.joining import Joined
from concerto_tf.records.conversion.passes import check_parts
from concerto_tf.records.conversion.writer import (
    Arranged,
    arrange,
    gene_dtype,
    narrow,
    offsets_of,
    widest_dtype,
)
from concerto_tf.records.genes.vocabulary import Vocabulary
from concerto_tf.records.manifest import ModalityInfo, check_label
from concerto_tf.records.padding import BatchLayout, gene_mask, group_size

_CHUNK_CELLS = 4_096
#: Bytes of values that stay in memory, so that few cells are read once.
HELD_BYTES = 128 * 2**20


class InputCells:
    """The cells of one input with the genes of a vocabulary; see `CellSet`.

    All cells are looked at once, so that what is unsuitable shows before a model sees any. Few
    stay in memory then; of more only what is small is kept of each, and they are read again for
    every `dataset`. Memory is bounded by the chunk and `held_bytes`, whatever the size of a file.

    Args:
        joined: A single input, which stays open while this is used.
        drop_empty: Leave out cells without any count instead of raising an error.
        chunk_cells: Cells read at once.
        held_bytes: Bytes of values up to which all cells stay in memory.

    Attributes:
        name: What to call them in messages.
        report: What there is to say of them: {"lines": [...], ...}.

    Raises:
        InputError: Cells have no counts, or their values do not fit together.

    Example:
        >>> import anndata
        >>> from concerto_tf.records import Vocabulary, open_input
        >>> from concerto_tf.records.conversion.joining import join
        >>> adata = anndata.AnnData(np.array([[0, 2, 1], [3, 0, 0]], "float32"))
        >>> like = {"rna": Vocabulary(tuple(adata.var_names))}
        >>> with open_input(adata) as cells:
        ...     joined = join([cells], source_key=None, label_keys=(), like=like, orthologs=None)
        ...     [batch] = InputCells(joined).dataset(2)
        >>> batch["values"].numpy()[np.argsort(batch["row"]), :2].tolist()
        [[2.0, 1.0], [3.0, 0.0]]
    """

    def __init__(
        self,
        joined: Joined,
        *,
        drop_empty: bool = False,
        chunk_cells: int = _CHUNK_CELLS,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        [self._input] = joined.inputs
        self._joined = joined
        self._chunk_cells = chunk_cells
        self.name, self.report = self._input.name, joined.report
        self._gene_cells = {
            name: np.zeros(len(of), np.int64) for name, of in joined.vocabularies.items()
        }
        summaries, rows = [], []
        held: list[_Block] | None = []
        densest = dict.fromkeys(joined.vocabularies, 0.0)
        for found in self._chunks():
            summaries.append(found.summary)
            rows.append(np.sort(found.chunk.rows[found.order]))
            block = _Block.of(found)
            for name, of in block.values.items():
                self._gene_cells[name] += np.bincount(of.genes, minlength=self._n_genes(name))
                densest[name] = max(densest[name], of.offsets[-1] / max(1, len(found.order)))
            if held is not None:
                held.append(block)
                held = held if sum(block.nbytes for block in held) <= held_bytes else None
        check_parts(summaries, joined, drop_empty)
        self._rows = np.concatenate(rows)
        self._held = None if held is None else _Block.joined(held)
        self.modalities: Mapping[str, ModalityInfo] = {
            name: _info(vocabulary, joined.units[name], [s["modalities"][name] for s in summaries])
            for name, vocabulary in joined.vocabularies.items()
        }
        # How much denser the densest chunk is than all: 1 where a minibatch is of any chunk.
        self._density = {
            name: max(1.0, densest[name] * self.n_cells / max(1, of.sum())) if not held else 1.0
            for name, of in self._gene_cells.items()
        }

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self._rows)

    @property
    def in_memory(self) -> bool:
        """Whether all cells stay in memory; then they come in random order, else chunk by chunk."""
        return self._held is not None

    @property
    def sources(self) -> list[str]:
        """Name of each source code."""
        return list(self._joined.sources)

    @property
    def labels(self) -> dict[str, list[str]]:
        """Label key to the name of each code."""
        return {key: list(names) for key, names in self._joined.labels.items()}

    def vocabulary_of(self, modality: str) -> Vocabulary:
        """The genes of a modality."""
        return self._joined.vocabularies[modality]

    def measured(self, modality: str = RNA) -> np.ndarray:
        """Which genes were measured at all, bool [genes]."""
        found = np.zeros(self._n_genes(modality), bool)
        found[self._joined.targets[0][modality].match.reference_index] = True
        return found

    def dataset(
        self,
        batch_size: int,
        *,
        genes: Genes | Mapping[str, Genes] | None = None,
        modalities: Sequence[str] | None = None,
        sources: Sequence[str] | None = None,
        labels: Sequence[str] = (),
        cells: bool = False,
        packed: bool = False,
    ) -> Iterator[Batch]:
        """Each cell once, in minibatches of one shape, read one ahead; see `Records.dataset`.

        An incomplete last one is filled up with cells of row -1.
        """
        if batch_size < 1:
            raise InputError(f"batch size is {batch_size}; it must be at least 1")
        for name in labels:
            check_label(self.name, self.labels, name)
        if not isinstance(genes, Mapping):
            genes = {} if genes is None else {RNA: genes}
        group = group_size(batch_size) if packed else 1
        shapes = [
            self._shape(name, genes.get(name), group)
            for name in (self.modalities if modalities is None else modalities)
        ]
        names = [ROW, SOURCE, *map(label_key, labels), *[CELL] * cells]
        codes = np.arange(len(self.sources), dtype=np.int32)
        if sources is not None:
            place = {name: code for code, name in enumerate(sources)}
            codes = np.array([place.get(name, -1) for name in self.sources], np.int32)
        return _ahead(self._minibatches(batch_size, shapes, names, codes))

    def obs(self) -> dict[str, np.ndarray]:
        """What is known of the cells, in the order of the input; see `Records.obs`."""
        columns = {ROW: self._rows, CELL: self._barcodes}
        known = {SOURCE: self._joined.sources}
        known.update({label_key(key): names for key, names in self._joined.labels.items()})
        for key, names in known.items():
            # The last entry is the one that the code -1 (missing) takes.
            codes = self._joined.integers[0][key][self._rows]
            columns[key] = np.array([*names, None], object)[codes]
        return columns

    @cached_property
    def _barcodes(self) -> np.ndarray:
        return np.array(self._input.barcodes(0, self._input.n_cells), object)[self._rows]

    def naming_damage(self) -> AbstractContextManager[None]:
        """A context for reading; an input says itself what is wrong with it."""
        return nullcontext()

    def without(self, modalities: Iterable[str]) -> InputCells:
        """The same cells, as if they had not been measured for some modalities."""
        other, left = copy(self), set(modalities)
        other.modalities = {name: of for name, of in self.modalities.items() if name not in left}
        return other

    def _n_genes(self, modality: str) -> int:
        return len(self._joined.vocabularies[modality])

    def _chunks(self) -> Iterator[Arranged]:
        for start in range(0, self._input.n_cells, self._chunk_cells):
            stop = min(start + self._chunk_cells, self._input.n_cells)
            yield arrange(self._joined.chunk(0, start, stop), self._joined.targets[0], 0)

    def _shape(self, modality: str, genes: Genes | None, group: int) -> _Shape:
        """How the genes asked for of a modality lie in a minibatch."""
        n_genes = self._n_genes(modality)
        kept = np.ones(n_genes, bool) if genes is None else gene_mask(genes, n_genes)
        mean = self._gene_cells[modality][kept].sum() / self.n_cells
        most = min(int(kept.sum()), self.modalities[modality].max_nonzeros)
        layout = BatchLayout.of(most, mean * self._density[modality], group)
        return _Shape(modality, layout, None if genes is None else kept)

    def _minibatches(
        self, batch_size: int, shapes: Sequence[_Shape], names: Sequence[str], codes: np.ndarray
    ) -> Iterator[Batch]:
        import tensorflow as tf

        for pieces in self._pieces(batch_size):
            missing = batch_size - sum(len(rows) for _, rows in pieces)
            batch: Batch = {}
            for name in names:
                column = np.concatenate([block.columns[name][rows] for block, rows in pieces])
                if name == SOURCE:
                    column = codes[column]
                rest = np.full(missing, b"" if name == CELL else -1, column.dtype)
                batch[name] = tf.constant(np.concatenate([column, rest]))
            for shape in shapes:
                found = [block.values[shape.modality].take(rows) for block, rows in pieces]
                whole = [np.concatenate(parts) for parts in zip(*found, strict=True)]
                batch.update(shape.fill(missing, *whole).entries(shape.modality))
            yield batch

    def _pieces(self, batch_size: int) -> Iterator[list[tuple[_Block, np.ndarray]]]:
        """The cells of each minibatch: some of one block, or of two that follow each other."""
        pieces: list[tuple[_Block, np.ndarray]] = []
        room = batch_size
        blocks = map(_Block.of, self._chunks()) if self._held is None else [self._held]
        for block in blocks:
            start = 0
            while start < len(block.order):
                rows = block.order[start : start + room]
                pieces.append((block, rows))
                start, room = start + len(rows), room - len(rows)
                if not room:
                    yield pieces
                    pieces, room = [], batch_size
        if pieces:
            yield pieces


@dataclass(frozen=True)
class _Values:
    """One modality of cells, one after the other: where each begins [n + 1], genes, values."""

    offsets: np.ndarray
    genes: np.ndarray
    values: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.offsets.nbytes + self.genes.nbytes + self.values.nbytes

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Genes and values of some cells [T], and how many each has [rows]."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        before = np.cumsum(lengths) - lengths
        places = np.arange(lengths.sum()) + np.repeat(self.offsets[rows] - before, lengths)
        return self.genes[places], self.values[places], lengths


@dataclass(frozen=True)
class _Block:
    """Some cells: columns [n] by key, modalities, random keys, and the order of these."""

    columns: dict[str, np.ndarray]
    values: dict[str, _Values]
    keys: np.ndarray

    @cached_property
    def order(self) -> np.ndarray:
        return np.argsort(self.keys)

    @property
    def nbytes(self) -> int:
        return sum(of.nbytes for of in self.values.values())

    @staticmethod
    def of(found: Arranged) -> _Block:
        """The cells of a chunk that are kept."""
        order, chunk = found.order, found.chunk
        return _Block(
            columns={
                ROW: chunk.rows[order],
                **{
                    name: codes[order].astype(np.int32 if name == SOURCE else np.int64)
                    for name, codes in chunk.integers.items()
                },
                CELL: np.array([name.encode() for name in chunk.barcodes], object)[order],
            },
            values={
                name: _Values(
                    *narrow(matrix, order, found.summary["modalities"][name]["value_dtype"])
                )
                for name, matrix in found.matrices.items()
            },
            keys=found.keys[order],
        )

    @staticmethod
    def joined(blocks: Sequence[_Block]) -> _Block:
        """The cells of several blocks."""
        if len(blocks) == 1:
            return blocks[0]

        def whole(arrays: Iterable[np.ndarray]) -> np.ndarray:
            return np.concatenate(list(arrays))

        values = {}
        for name in blocks[0].values:
            parts = [block.values[name] for block in blocks]
            values[name] = _Values(
                offsets_of(whole(np.diff(part.offsets) for part in parts)),
                whole(part.genes for part in parts),
                whole(part.values for part in parts),
            )
        columns = {name: whole(b.columns[name] for b in blocks) for name in blocks[0].columns}
        return _Block(columns, values, whole(block.keys for block in blocks))


@dataclass(frozen=True)
class _Shape:
    """How the genes of a modality lie in a minibatch; `kept` bool [genes], None for all."""

    modality: str
    layout: BatchLayout
    kept: np.ndarray | None

    def fill(
        self, missing: int, genes: np.ndarray, values: np.ndarray, lengths: np.ndarray
    ) -> ModalityBatch:
        """What a minibatch holds of cells, and of as many missing ones without values."""
        import tensorflow as tf

        lengths = np.concatenate([lengths, np.zeros(missing, lengths.dtype)])
        ends = np.cumsum(lengths)
        running = np.concatenate([[0], np.cumsum(values, dtype=np.float64)])
        total = np.diff(running[ends], prepend=0).astype(np.float32)
        if self.kept is not None:
            wanted = np.flatnonzero(self.kept[genes])
            genes, values = genes[wanted], values[wanted]
            lengths = np.diff(np.searchsorted(wanted, ends), prepend=0)
        genes, values, offset = self.layout.fill(genes, values, lengths)
        return ModalityBatch(
            tf.constant(genes),
            tf.constant(values),
            tf.constant(total),
            None if offset is None else tf.constant(offset),
        )


def _info(vocabulary: Vocabulary, units: str, found: Sequence[Mapping[str, Any]]) -> ModalityInfo:
    return ModalityInfo(
        vocabulary="",
        n_genes=len(vocabulary),
        gene_dtype=gene_dtype(len(vocabulary)).name,
        value_dtype=widest_dtype(of["value_dtype"] for of in found).name,
        max_nonzeros=max(of["max_nonzeros"] for of in found),
        units=units,
        sha256="",
    )


def _ahead(items: Iterator[Batch]) -> Iterator[Batch]:
    """The same items, each of which is made while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item
