"""Batches of cells as models take them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf.errors import InputError
from concerto_tf.records.batch import ROW, Batch, Minibatch, key

#: Values, and cells, that an initialization looks at, at most (400 MB).
SAMPLE_VALUES, SAMPLE_CELLS = 100_000_000, 50_000
_EMBEDDINGS = {"z", "embedding"}


def _entries_of(x: Any) -> dict[str, tf.TensorSpec]:
    """What a dataset says of the entries of its batches; nothing of anything else."""
    spec = x.element_spec if isinstance(x, tf.data.Dataset) else None
    spec = spec[0] if isinstance(spec, tuple) and spec else spec
    return spec if isinstance(spec, dict) else {}


def batch_size_of(x: Any) -> int | None:
    """Cells in each batch of a dataset; None where that is not fixed, or no dataset."""
    spec = _entries_of(x)
    return next((spec[key(name, "genes")].shape[0] for name in Minibatch(spec).modalities), None)


def without_text(x: Any) -> Any:
    """A dataset of batches without the entries (barcodes) that XLA cannot take."""
    spec = _entries_of(x)
    kept = [name for name, of in spec.items() if of.dtype != tf.string]
    if len(kept) == len(spec):
        return x

    def choose(batch: Any, *rest: Any) -> Any:
        batch = {name: batch[name] for name in kept}
        return (batch, *rest) if rest else batch

    return x.map(choose)


def by_batch(
    step: Callable[[Batch], dict[str, tf.Tensor]],
    data: Iterable[Any],
    measured: Mapping[str, np.ndarray] | None = None,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Applies a step to each batch of cells.

    Args:
        step: Gives tensors [B, ...] of a batch, by name.
        data: Batches of cells.
        measured: Which genes of the vocabulary were measured at all, bool [G] by modality; by
            default all.

    Yields:
        Rows int64 [n] of the batch's cells in the input, counted where batches do not say, and
        arrays [n, ...] by name. Cells of row -1 are left out.
    """
    seen = 0
    for batch in data:
        batch = Minibatch(batch).numeric
        for name, of_genes in (measured or {}).items():
            batch[key(name, "measured")] = tf.constant(of_genes, tf.bool)
        part = {name: value.numpy() for name, value in step(batch).items()}
        for name in _EMBEDDINGS & set(part):
            if not np.isfinite(part[name]).all():
                raise InputError(
                    "the model gives embeddings that are no numbers; its file was changed, or it "
                    "was trained on unsuitable values: train it again"
                )
        n_cells = len(next(iter(part.values())))
        row = batch[ROW].numpy() if ROW in batch else np.arange(seen, seen + n_cells)
        seen += n_cells
        yield row[row >= 0], {name: value[row >= 0] for name, value in part.items()}


def in_order(
    step: Callable[[Batch], dict[str, tf.Tensor]],
    data: Iterable[Any],
    measured: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Applies a step to all cells, in the order of the input where batches have ``row``.

    Args:
        step: As for `by_batch`.
        data: As for `by_batch`.
        measured: As for `by_batch`.

    Returns:
        Arrays [N, ...] by name; empty where there is no batch.
    """
    found = list(by_batch(step, data, measured))
    if not found:
        return {}
    rows = np.concatenate([rows for rows, _ in found])
    place = np.empty_like(rows)
    place[np.argsort(rows, kind="stable")] = np.arange(len(rows))
    whole = {
        name: np.empty((len(rows), *value.shape[1:]), value.dtype)
        for name, value in found[0][1].items()
    }
    end = len(rows)
    while found:  # from the last one on, so that what is placed is not held twice
        own, part = found.pop()
        begin = end - len(own)
        for name, value in part.items():
            whole[name][place[begin:end]] = value
        end = begin
    return whole


def first_cells(
    look: Callable[[Batch], Sequence[tf.Tensor]], data: Iterable[Any], width: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """What a model sees of the first cells: as many as fit into 400 MB, at most 50,000.

    Args:
        look: Gives tensors [B, ...] of a batch.
        data: Batches of cells in random order; rows of -1 are left out.
        width: Values of a cell in all of these tensors.

    Returns:
        Arrays [n, ...], float32, and source codes [n]. Of no batch, no array.
    """
    most = max(2, min(SAMPLE_CELLS, SAMPLE_VALUES // width))
    found: list[Sequence[np.ndarray]] = []
    sources, n = [np.zeros(0, np.int32)], 0
    for batch in data:
        batch = Minibatch(batch).numeric
        view = Minibatch(batch)
        source = view.source.numpy()
        real = np.ones(len(source), bool) if view.row is None else view.row.numpy() >= 0
        found.append([tf.cast(x, tf.float32).numpy()[real] for x in look(batch)])
        sources.append(source[real])
        n += int(real.sum())
        if n >= most:
            break
    wholes = [np.concatenate(xs)[:most] for xs in zip(*found, strict=True)]
    return wholes, np.concatenate(sources)[:most]
