"""The `tf.data` pipeline behind `Records.dataset`: files, order, batches, parsing.

The cells lie in the shards in random order already. A shuffled epoch takes the shards in another
order, interleaves a few of them and shuffles windows of the result, all from (seed, epoch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from concerto_tf.records.batch import (
    CELL,
    RNA,
    ROW,
    SOURCE,
    STORED,
    Batch,
    Genes,
    ModalityBatch,
    key,
    label_key,
)
from concerto_tf.records.manifest import Manifest, ModalityInfo, ShardInfo
from concerto_tf.records.packing import pack
from concerto_tf.records.padding import BatchLayout, gene_mask, group_size
from concerto_tf.records.share import WHOLE, Share, worker_share

#: For functions of tensors without Python's control flow, which AutoGraph takes seconds to rewrite.
_as_written = tf.autograph.experimental.do_not_convert
_WINDOW_CELLS = 16_384
_INTERLEAVED_SHARDS = 4
_BLOCK_CELLS = 64
#: TensorFlow's names of the manifest's compressions.
_COMPRESSIONS = {"none": "", "gzip": "GZIP"}
_ENDLESS = np.iinfo(np.int64).max


def build(
    folder: Path,
    manifest: Manifest,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    repeat: bool,
    first_epoch: int,
    genes: Mapping[str, Genes],
    modalities: Sequence[str],
    sources: Sequence[str] | None,
    labels: Sequence[str],
    cells: bool,
    shard_of: tuple[int, ...],
    drop_remainder: bool,
    pad_last: bool,
    gene_cells: Mapping[str, np.ndarray] | None,
    replicas: int,
    one_source: bool,
) -> tf.data.Dataset:
    """See `Records.dataset`, whose folder and manifest these are.

    To pack the batches takes `gene_cells`, by modality the number of cells in which each gene is
    not zero.
    """
    shards, parts, n_cells = worker_share(manifest, shard_of)

    @_as_written
    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        files = tf.range(len(shards))
        if shuffle:
            # Folding one number after the other into the seed keeps seeds and epochs apart.
            fold = tf.random.experimental.stateless_fold_in(
                tf.constant([seed % 2**31, seed // 2**31 % 2**31], tf.int64), number
            )
            files = tf.random.experimental.stateless_shuffle(files, fold)
        paths = tf.gather(tf.constant([str(folder / shard.file) for shard in shards]), files)
        divided = any(part != WHOLE for part in parts)
        part_of = tf.gather(tf.constant(parts, tf.int64), files) if divided else None
        cells_of = _read(paths, part_of, manifest.compression, shuffle, Share(*shard_of).every)
        if shuffle:
            cells_of = _shuffle(cells_of, n_cells, fold)
        if one_source:
            return _by_source(cells_of, batch_size, drop_remainder)
        return cells_of.rebatch(batch_size, drop_remainder=drop_remainder)

    stop = _ENDLESS if repeat else first_epoch + 1
    dataset = tf.data.Dataset.range(first_epoch, stop).flat_map(epoch)
    group = 1 if gene_cells is None else group_size(batch_size, replicas)
    decoders = [
        _Decoder(name, manifest, genes.get(name), group, (gene_cells or {}).get(name))
        for name in modalities
    ]
    parse = _Parser(manifest, decoders, sources, labels, cells)
    fixed = batch_size if drop_remainder or pad_last else None

    @_as_written
    def to_batch(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        if fixed is not None:
            # An empty string is a message without features: every one takes its default.
            missing = batch_size - tf.shape(serialized)[0]
            serialized = tf.pad(serialized, [[0, missing]], constant_values="")
            serialized.set_shape([batch_size])
        return parse(serialized)

    dataset = dataset.map(to_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    # Of a share it is not known how many cells of a source it has.
    whole = Share(*shard_of) == Share()
    filled = [*manifest.cells_per_source] if one_source else [n_cells]
    n_batches = sum(n // batch_size if drop_remainder else -(-n // batch_size) for n in filled)
    size = tf.data.INFINITE_CARDINALITY if repeat else n_batches
    if repeat or whole or not one_source:
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(size))
    options = tf.data.Options()
    options.deterministic = True
    # Each worker is given its share by `shard_of`.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options).prefetch(tf.data.AUTOTUNE)


def _read(
    paths: tf.Tensor, parts: tf.Tensor | None, compression: str, interleaved: bool, every: int
) -> tf.data.Dataset:
    """Serialized cells, in small batches as that costs less than one by one."""
    step = abs(every)

    @_as_written
    def read(path: tf.Tensor, part: tf.Tensor | None = None) -> tf.data.Dataset:
        cells = tf.data.TFRecordDataset(path, _COMPRESSIONS[compression])
        if part is not None:
            cells = cells.shard(part[1], part[0])
        if every > 0:
            cells = cells.shard(step, 0)
        if every >= 0:
            return cells.batch(_BLOCK_CELLS)
        # Blocks begin with a cell that is held out.
        return cells.batch(-(-_BLOCK_CELLS // step) * step).map(
            lambda block: tf.boolean_mask(block, tf.range(tf.shape(block)[0]) % step > 0)
        )

    if parts is None and not interleaved and not every:
        return read(paths)
    at_once = _INTERLEAVED_SHARDS if interleaved else 1
    files = tf.data.Dataset.from_tensor_slices(paths if parts is None else (paths, parts))
    return files.interleave(
        read, cycle_length=at_once, block_length=1, num_parallel_calls=at_once, deterministic=True
    )


def _by_source(records: tf.data.Dataset, batch_size: int, drop_remainder: bool) -> tf.data.Dataset:
    """Batches of the cells of one source each, as soon as there are enough of it."""
    feature = {SOURCE: tf.io.FixedLenFeature([], tf.int64, -1)}

    @_as_written
    def with_source(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return serialized, tf.io.parse_example(serialized, feature)[SOURCE]

    @_as_written
    def batched(_: tf.Tensor, cells: tf.data.Dataset) -> tf.data.Dataset:
        alone = cells.map(lambda serialized, _: serialized)
        return alone.batch(batch_size, drop_remainder=drop_remainder)

    return (
        records.map(with_source)
        .unbatch()
        .group_by_window(lambda _, source: source, batched, window_size=batch_size)
    )


def _shuffle(records: tf.data.Dataset, n_cells: int, fold: tf.Tensor) -> tf.data.Dataset:
    """Shuffles windows. Unlike `Dataset.shuffle` it does not depend on TensorFlow's global seed."""

    @_as_written
    def permute(number: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
        return tf.random.experimental.stateless_shuffle(
            window, tf.random.experimental.stateless_fold_in(fold, number)
        )

    windows = records.rebatch(min(_WINDOW_CELLS, n_cells)).enumerate()
    return windows.map(permute, num_parallel_calls=1).prefetch(1)


class _Parser:
    """Turns serialized cells [B] into a minibatch."""

    def __init__(
        self,
        manifest: Manifest,
        decoders: Sequence[_Decoder],
        sources: Sequence[str] | None,
        labels: Sequence[str],
        cells: bool,
    ) -> None:
        self._decoders = decoders
        self._kept = [label_key(name) for name in labels] + [CELL] * cells
        self._sources: np.ndarray | None = None
        if sources is not None:
            code = {name: number for number, name in enumerate(sources)}
            # The last entry is the one that padding (-1) takes.
            own = [code.get(name, -1) for name in manifest.sources]
            self._sources = np.array([*own, -1], np.int32)
        strings = [*(name for of in decoders for name in of.keys), *[CELL] * cells]
        self._features = {
            **{name: tf.io.FixedLenFeature([], tf.string, "") for name in strings},
            **{
                name: tf.io.FixedLenFeature([], tf.int64, -1)
                for name in (ROW, SOURCE, *map(label_key, labels))
            },
        }

    def __call__(self, serialized: tf.Tensor) -> Batch:
        parsed = tf.io.parse_example(serialized, self._features)
        own = source = tf.cast(parsed[SOURCE], tf.int32)
        if self._sources is not None:
            source = tf.gather(self._sources, source % len(self._sources))
        batch = {ROW: parsed[ROW], SOURCE: source}
        for decode in self._decoders:
            batch.update(decode(parsed, own).entries(decode.name))
        return {**batch, **{name: parsed[name] for name in self._kept}}


class _Decoder:
    """Turns the raw bytes of one modality of cells [B] into what a minibatch holds of it."""

    def __init__(
        self,
        name: str,
        manifest: Manifest,
        genes: Genes | None,
        group: int,
        gene_cells: np.ndarray | None,
    ) -> None:
        self.name = name
        self.keys = [key(name, field) for field in STORED]
        self._info = info = manifest.modalities[name]
        self._kept = None if genes is None else gene_mask(genes, info.n_genes)
        n_kept = info.n_genes if self._kept is None else int(self._kept.sum())
        mean, most = 0.0, min(n_kept, info.max_nonzeros)
        if gene_cells is not None:
            kept = gene_cells if self._kept is None else gene_cells[self._kept]
            mean = kept.sum() / manifest.n_cells
        self._layout = BatchLayout.of(most, mean, group if gene_cells is not None else 1)
        self._coverage: np.ndarray | None = None
        if manifest.coverage and name == RNA:
            self._coverage = np.array([*manifest.coverage, 1], np.float32)

    def __call__(self, parsed: Mapping[str, tf.Tensor], source: tf.Tensor) -> ModalityBatch:
        """The modality of cells of these sources, by the codes of the records."""
        raw = [parsed[name] for name in self.keys]
        flat = self._kept is not None or self._layout.group > 1
        made = self._chosen(raw) if flat else self._whole(raw)
        if self._coverage is None:
            return made
        # What cells hold of genes that they were not measured for is missing in their sum.
        share = tf.gather(self._coverage, source % len(self._coverage))
        return replace(made, total=made.total / share)

    def _whole(self, raw: Sequence[tf.Tensor]) -> ModalityBatch:
        """All genes, padded."""
        genes, values = (
            _decode(r, self._info, field, self._layout.width)
            for r, field in zip(raw, STORED, strict=True)
        )
        return ModalityBatch(genes, values, tf.reduce_sum(values, 1))

    def _chosen(self, raw: Sequence[tf.Tensor]) -> ModalityBatch:
        """Some of the genes, or packed, or both."""
        n_cells = raw[0].shape[0]
        lengths = tf.strings.length(raw[0]) // np.dtype(self._info.gene_dtype).itemsize
        genes, values = (
            _decode_flat(r, self._info, field) for r, field in zip(raw, STORED, strict=True)
        )
        ends = tf.cumsum(lengths)
        # Differences of a running sum, exact for counts, cost far less than a segment sum.
        running = tf.pad(tf.cumsum(tf.cast(values, tf.float64)), [[1, 0]])
        total = tf.cast(_differences(tf.gather(running, ends)), tf.float32)
        if self._kept is not None:
            wanted = tf.where(tf.gather(self._kept, genes))[:, 0]
            genes, values = tf.gather(genes, wanted), tf.gather(values, wanted)
            before = tf.searchsorted(wanted, tf.cast(ends, tf.int64))
            lengths = tf.cast(_differences(before), tf.int32)
        if self._layout.group > 1:
            genes, values, offset = (
                tf.ensure_shape(part, [n_cells, None])
                for part in pack(genes, values, lengths, self._layout.group, self._layout.width)
            )
            return ModalityBatch(genes, values, total, offset)

        def pad(numbers: tf.Tensor) -> tf.Tensor:
            ragged = tf.RaggedTensor.from_row_lengths(numbers, lengths, validate=False)
            dense = ragged.to_tensor(shape=[None, self._layout.width])
            return tf.ensure_shape(dense, [n_cells, self._layout.width])

        return ModalityBatch(pad(genes), pad(values), total)


def _decode(raw: tf.Tensor, info: ModalityInfo, field: str, width: int) -> tf.Tensor:
    """Raw little-endian bytes [B] to int32 genes or float32 values [B, K], padded with 0."""
    dtype = _stored_dtype(info, field)
    numbers = tf.io.decode_raw(raw, dtype, fixed_length=width * dtype.size)
    return _as_numbers(numbers, info, field)


def _decode_flat(raw: tf.Tensor, info: ModalityInfo, field: str) -> tf.Tensor:
    """Raw little-endian bytes [B] to the int32 genes or float32 values of all cells [T]."""
    numbers = tf.io.decode_raw(tf.strings.reduce_join(raw), _stored_dtype(info, field))
    return _as_numbers(numbers, info, field)


def _differences(x: tf.Tensor) -> tf.Tensor:
    """Each number [B] less the one before it, the first as it is."""
    return x - tf.pad(x[:-1], [[1, 0]])


def _stored_dtype(info: ModalityInfo, field: str) -> tf.DType:
    name = info.gene_dtype if field == "genes" else info.value_dtype
    # decode_raw knows no uint32, but int32 has the same bytes.
    return tf.int32 if name == "uint32" else tf.as_dtype(name)


def _as_numbers(numbers: tf.Tensor, info: ModalityInfo, field: str) -> tf.Tensor:
    if field == "genes":
        return tf.cast(numbers, tf.int32)
    if info.value_dtype == "uint32":
        numbers = tf.bitcast(numbers, tf.uint32)
    return tf.cast(numbers, tf.float32)


def count_sources(folder: Path, manifest: Manifest, shard: ShardInfo) -> list[int]:
    """Cells of each source within one shard, or what could be read of it."""
    kind = _COMPRESSIONS[manifest.compression]
    counts = np.zeros(len(manifest.sources), np.int64)
    features = {SOURCE: tf.io.FixedLenFeature([], tf.int64)}
    dataset = tf.data.TFRecordDataset(str(folder / shard.file), kind).batch(4096)
    for serialized in dataset:
        codes = tf.io.parse_example(serialized, features)[SOURCE].numpy()
        counts += np.bincount(codes, minlength=len(counts))[: len(counts)]
    return counts.tolist()
