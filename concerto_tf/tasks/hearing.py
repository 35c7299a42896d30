"""Embeddings of cells, and in the same pass what their genes say of labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from concerto_tf.models.encoder import Encoder, Teachable, read_batches
from concerto_tf.numerics.readout import chosen_to_learn
from concerto_tf.records import CellSet
from concerto_tf.records.batch import ROW, SOURCE
from concerto_tf.reference.cells import Labels, Reference
from concerto_tf.reference.voices import Genes
from concerto_tf.tasks.embed import Progress, whole_cells


class Heard(NamedTuple):
    """Cells as they are compared with a reference.

    Attributes:
        z: Embeddings [n, d].
        by_genes: What their genes say of labels [n, L], by key; see `Voices.heard`.
    """

    z: np.ndarray
    by_genes: dict[str, np.ndarray]


def hear(
    model: Encoder,
    records: CellSet,
    reference: Reference | None,
    progress: Progress | None = None,
    *,
    fill_unmeasured: bool = True,
) -> Heard:
    """Embeds a query, and asks its genes for the labels of a reference.

    Args:
        model: The model.
        records: The query.
        reference: The reference; None where there is none.
        progress: Called with the number of cells embedded and of all cells.
        fill_unmeasured: As in `embed_records`.
    """
    voices = {} if reference is None else reference.voices
    kernels = {key: of.genes for key, of in voices.items() if len(of.genes)}
    data, measured = whole_cells(model, records, progress)
    z = np.zeros((records.n_cells, model.embedding_dim), np.float32)
    said = {key: np.zeros((len(z), of.shape[1]), np.float32) for key, of in kernels.items()}
    everything = records.obs()[ROW]
    with records.naming_damage():
        for rows, found in read_batches(
            model, data, measured if fill_unmeasured else None, genes=bool(said)
        ):
            own = np.searchsorted(everything, rows)
            z[own] = found["z"]
            for key, kernel in kernels.items():
                said[key][own] = found["y"] @ kernel
    return Heard(z, said)


def read_reference(
    model: Encoder,
    data: Iterable[Any],
    measured: Mapping[str, np.ndarray] | None,
    labels: Mapping[str, Labels],
    known: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, Genes]:
    """Embeds reference cells, and keeps the values of those that labels are learned from.

    Args:
        model: The model.
        data: Batches of the cells.
        measured: Which genes were measured, bool [G] by modality; None where all were.
        labels: Labels of all cells, by key, the finest last.
        known: What is known of all cells [N], as `CellSet.obs` has it.

    Returns:
        Embeddings of all cells [N, d], and what `Reference.learn` needs of some.
    """
    everything = known[ROW]
    taught = isinstance(model, Teachable)
    deviations = model.deviations if isinstance(model, Teachable) else np.zeros(0, np.float32)
    chosen = np.zeros(len(everything), bool)
    if labels:
        codes = np.stack([of.codes for of in labels.values()])
        labelled: np.ndarray = np.max(codes, axis=0) >= 0
        _, codes = np.unique(codes, axis=1, return_inverse=True)  # as many of all that are there
        chosen = chosen_to_learn(
            codes.ravel(), labelled, max(len(deviations), model.embedding_dim), seed=0
        )
    rows, place = np.flatnonzero(chosen), np.cumsum(chosen) - 1
    z = np.zeros((len(everything), model.embedding_dim), np.float32)
    values = np.zeros((len(rows), len(deviations)), np.float32)
    for given, found in read_batches(model, data, measured, genes=taught and bool(len(rows))):
        own = np.searchsorted(everything, given)
        z[own] = found["z"]
        if "y" in found:
            kept = chosen[own]
            values[place[own[kept]]] = found["y"][kept]
    _, codes = np.unique(known[SOURCE][rows].astype(str), return_inverse=True)
    return z, Genes(rows, values, deviations, codes)
