"""What the passes do with a chunk and with a shard: cells into a spooled part, parts into a shard.

Both depend only on their arguments, so any number of processes makes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from concerto_tf._files import atomic
from concerto_tf.records.batch import CELL, RNA, ROW, SOURCE, STORED, key
from concerto_tf.records.conversion.quality import cell_figures
from concerto_tf.records.conversion.spool import Part, random_keys, write_part
from concerto_tf.records.example import BytesColumn, encode
from concerto_tf.records.genes.overlap import Match
from concerto_tf.records.manifest import ShardInfo
from concerto_tf.records.tfrecord import write_tfrecord
from concerto_tf.records.units import TARGET_SUM, scales_with_depth

_BLOCK_CELLS = 512


@dataclass(frozen=True)
class Target:
    """Where the genes of an input's modality go in the records.

    Attributes:
        match: The input's genes among those of the records.
        units: "counts", "linear", "lognorm" or "values", as this input has them.
    """

    match: Match
    units: str


@dataclass(frozen=True)
class Chunk:
    """Some consecutive cells of one input.

    Attributes:
        matrices: Modality to values [n, genes of the input]; always with RNA.
        rows: int64 [n], positions over all inputs.
        integers: "source" and "label/<key>" to codes [n].
        barcodes: n names.
    """

    matrices: Mapping[str, sp.csr_matrix]
    rows: np.ndarray
    integers: Mapping[str, np.ndarray]
    barcodes: Sequence[str]


def gene_dtype(n_genes: int) -> np.dtype:
    """The dtype that gene indices are stored in."""
    return np.dtype("<u2" if n_genes <= 65_535 else "<u4")


def smallest_dtype(values: np.ndarray) -> np.dtype:
    """The smallest of uint8, uint16, uint32 and float32 that holds non-negative values unchanged.

    Float32 is the widest: what none holds unchanged is rounded to it.

    Example:
        >>> smallest_dtype(np.array([1.0, 256.0])), smallest_dtype(np.array([0.5]))
        (dtype('uint16'), dtype('float32'))
    """
    largest = values.max(initial=0)
    for dtype in map(np.dtype, ("<u1", "<u2", "<u4")):
        if largest <= np.iinfo(dtype).max:
            whole = values.dtype.kind in "ui" or bool((values.astype(dtype) == values).all())
            return dtype if whole else np.dtype("<f4")
    return np.dtype("<f4")


def widest_dtype(dtypes: Iterable[str]) -> np.dtype:
    """The one of some parts' value dtypes that holds the values of all of them."""
    return max(map(np.dtype, dtypes), key=lambda dtype: (dtype.kind == "f", dtype.itemsize))


def moments(block: sp.csr_matrix, units: str) -> np.ndarray:
    """Sums over cells from which the mean and variance of every gene follow.

    Args:
        block: [n, genes], non-negative.
        units: Counts and "linear" values are scaled to 10,000 per cell, "lognorm" ones go back
            through expm1 to that scale, other values are taken as they are.

    Returns:
        float64 [3, genes]: number of nonzero cells, sum, sum of squares.
    """
    n_cells, n_genes = block.shape
    values = block.data.astype(np.float64)
    block = sp.csr_matrix((values, block.indices, block.indptr), block.shape)
    if units == "lognorm":
        np.expm1(values, out=values)
    factors = np.ones(n_cells)
    if scales_with_depth(units):
        totals = block @ np.ones(n_genes)
        np.divide(TARGET_SUM, totals, out=factors, where=totals > 0)
    sums = np.empty((3, n_genes))
    sums[1] = factors @ block
    np.square(values, out=values)
    sums[2] = np.square(factors) @ block
    values[:] = 1
    sums[0] = np.ones(n_cells) @ block
    return sums


@dataclass(frozen=True)
class Arranged:
    """The cells of a chunk that are kept, in the vocabulary of the records.

    Attributes:
        chunk: The chunk.
        matrices: Modality to values [n, genes of the records], in the order of the chunk.
        keys: uint64 [n], a random key of each cell of the chunk.
        order: int64 [kept], the cells that have RNA, by ascending key.
        summary: The number of cells, how many had no RNA and the first of their barcodes, the first
            and the last row, and per modality the units, the value dtype, the most nonzeros of a
            cell and the number of cells without any.
    """

    chunk: Chunk
    matrices: Mapping[str, sp.csr_matrix]
    keys: np.ndarray
    order: np.ndarray
    summary: dict


def arrange(chunk: Chunk, targets: Mapping[str, Target], seed: int) -> Arranged:
    """Leaves out the cells without RNA, puts the others in random order, and finds their genes.

    Args:
        chunk: The cells.
        targets: Modality to its place in the records.
        seed: Seed of the permutation.
    """
    filled = np.diff(chunk.matrices[RNA].indptr) > 0
    empty = np.flatnonzero(~filled)
    keys = random_keys(seed, chunk.rows)
    order = np.argsort(keys)
    order = order[filled[order]]
    summary: dict = {
        "n_cells": len(order),
        "n_empty": len(empty),
        "empty": [chunk.barcodes[i] for i in empty[:3].tolist()],
        "rows": [int(chunk.rows[0]), int(chunk.rows[-1])],
        "modalities": {},
    }
    matrices = {}
    for name, target in targets.items():
        matrices[name] = matrix = target.match.apply(chunk.matrices[name])
        lengths = np.diff(matrix.indptr)[order]
        summary["modalities"][name] = {
            "units": target.units,
            "value_dtype": smallest_dtype(matrix.data).str,
            "max_nonzeros": int(lengths.max(initial=0)),
            "n_blank": int((lengths == 0).sum()),
        }
    return Arranged(chunk, matrices, keys, order, summary)


def spool_chunk(
    path: Path, chunk: Chunk, targets: Mapping[str, Target], seed: int, plan: str = ""
) -> None:
    """First pass: writes a chunk as a part, ordered by key and in the records' vocabulary.

    Args:
        path: File to write.
        chunk: The cells.
        targets: Modality to its place in the records.
        seed: Seed of the permutation.
        plan: Tells the conversion apart.
    """
    found = arrange(chunk, targets, seed)
    if scales_with_depth(targets[RNA].units):
        genes = targets[RNA].match.query.names
        found.summary["quality"] = cell_figures(chunk.matrices[RNA], genes)
    order = found.order
    names = [chunk.barcodes[i].encode() for i in order.tolist()]
    arrays = {
        "key": found.keys[order],
        "row": chunk.rows[order],
        **{name: codes[order].astype(np.int32) for name, codes in chunk.integers.items()},
        "cell": np.frombuffer(b"".join(names), np.uint8),
        "cell/offsets": offsets_of([len(name) for name in names]),
    }
    for name, matrix in found.matrices.items():
        of, sums = found.summary["modalities"][name], np.zeros((3, matrix.shape[1]))
        for field, array in zip(
            ("offsets", "genes", "values"),
            narrow(matrix, order, of["value_dtype"], partial(_add_moments, sums, of["units"])),
            strict=True,
        ):
            arrays[f"{name}/{field}"] = array
        arrays[f"{name}/moments"] = sums.ravel()
    write_part(path, arrays, found.summary, plan)


def _add_moments(sums: np.ndarray, units: str, block: sp.csr_matrix) -> None:
    sums += moments(block, units)


def narrow(
    matrix: sp.csr_matrix,
    order: np.ndarray,
    value_dtype: str,
    look: Callable[[sp.csr_matrix], None] = lambda block: None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells one after the other, in the dtypes of the records.

    Goes in blocks, so that a cell is still in the processor's cache for the next step.

    Args:
        matrix: [n, genes].
        order: Which cells, in which order, int64 [m].
        value_dtype: Of the values.
        look: Called with each block of cells.

    Returns:
        Offsets int64 [m + 1], genes and values.
    """
    offsets = offsets_of(np.diff(matrix.indptr)[order])
    genes = np.empty(offsets[-1], gene_dtype(matrix.shape[1]))
    values = np.empty(offsets[-1], value_dtype)
    for start in range(0, len(order), _BLOCK_CELLS):
        block = matrix[order[start : start + _BLOCK_CELLS]]
        place = slice(offsets[start], offsets[start] + block.nnz)
        genes[place], values[place] = block.indices, block.data
        look(block)
    return offsets, genes, values


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where each of consecutive runs [n] begins and the last ends, int64 [n + 1]."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


@dataclass(frozen=True)
class ShardPlan:
    """What the second pass needs to know for one shard.

    Attributes:
        path: File to write.
        cuts: int64 [parts, blocks + 1]. The shard is the blocks one after the other, and block j
            holds the cells cuts[i, j] to cuts[i, j + 1] of each part i.
        value_dtypes: Modality to the dtype of its values.
        integers: Names of the columns with codes, "source" first.
        n_sources: Number of sources.
        compression: "none" or "gzip".
    """

    path: Path
    cuts: np.ndarray
    value_dtypes: Mapping[str, np.dtype]
    integers: Sequence[str]
    n_sources: int
    compression: str


def write_shard(plan: ShardPlan, parts: Sequence[Part]) -> ShardInfo:
    """Second pass: writes one shard, block by block.

    Args:
        plan: The shard.
        parts: All parts of the first pass.

    Returns:
        The shard's entry in the manifest.
    """
    sources = np.zeros(plan.n_sources, np.int64)

    def messages() -> Iterator[bytes]:
        for block in range(plan.cuts.shape[1] - 1):
            order, integers, strings = _gather(plan, parts, plan.cuts[:, block : block + 2])
            sources[:] += np.bincount(integers[SOURCE], minlength=plan.n_sources)
            yield from encode(order, integers, strings)

    with atomic(plan.path) as temporary:
        size, checksum = write_tfrecord(temporary, messages(), plan.compression)
    counts = tuple(sources.tolist())
    return ShardInfo(plan.path.name, sum(counts), size, checksum, counts)


def _gather(
    plan: ShardPlan, parts: Sequence[Part], cuts: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, BytesColumn]]:
    """The cells of a block from all parts: what `encode` takes."""
    slices = [
        (part, start, stop)
        for part, (start, stop) in zip(parts, cuts.tolist(), strict=True)
        if stop > start
    ]

    def column(read: Callable[[Part, int, int], np.ndarray], dtype: str) -> np.ndarray:
        pieces = [read(*piece) for piece in slices]
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype)

    def values(name: str) -> np.ndarray:
        return column(lambda part, start, stop: part.read(name, start, stop), "<i8")

    def strings(group: str, name: str, dtype: np.dtype) -> BytesColumn:
        edges = [part.read(f"{group}/offsets", start, stop + 1) for part, start, stop in slices]
        pieces = [
            piece[0].read(name, edge[0], edge[-1]).astype(dtype, copy=False)
            for piece, edge in zip(slices, edges, strict=True)
        ]
        content = np.concatenate(pieces) if pieces else np.zeros(0, dtype)
        lengths = np.concatenate([np.diff(edge) for edge in edges]) if edges else np.zeros(0)
        return BytesColumn(content, offsets_of(lengths) * dtype.itemsize)

    integers = {name: values(name) for name in (ROW, *plan.integers)}
    columns = {CELL: strings("cell", "cell", np.dtype("u1"))}
    for name, dtype in plan.value_dtypes.items():
        genes = next(part.arrays[f"{name}/genes"][0] for part in parts)
        for field, stored in zip(STORED, (genes, dtype), strict=True):
            columns[key(name, field)] = strings(name, f"{name}/{field}", stored)
    return np.argsort(values("key")), integers, columns
