"""Whether a model and records fit together: genes, modalities and units."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np

from concerto_tf.errors import Argument, InputError
from concerto_tf.models.encoder import Encoder, chosen_genes, looks_at, modality_input
from concerto_tf.records import CellSet, Vocabulary
from concerto_tf.records.batch import RNA, ROW, Batch, Minibatch
from concerto_tf.records.units import LINEAR

_log = logging.getLogger("concerto_tf")
#: Share of a model's input genes below which it is said that few were measured.
_FEW_MEASURED = 0.5
#: Cells whose totals tell how deeply cells were measured.
_TOTALS_OF = 10_000
#: Cells of a minibatch that is only looked at.
BATCH_CELLS = 256


def check_agreement(model: Encoder, records: CellSet) -> None:
    """Raises InputError if records do not hold the model's genes, or values in other units."""
    _check_vocabulary(model, records)
    check_units(model, records)


def _check_vocabulary(model: Encoder, records: CellSet) -> None:
    """Raises InputError if records do not hold the model's genes in the model's order."""
    for place, one in enumerate(model.modality_inputs):
        if place and one.name not in records.modalities:
            continue
        found = records.vocabulary_of(one.name).ids
        if tuple(found) != one.vocabulary:
            what = "genes" if one.name == RNA else f"features of {one.name}"
            raise InputError(
                f"{records.name}: its {len(found)} {what} are not the {len(one.vocabulary)} of "
                "the model; convert the cells again like it",
                Argument("like", of="convert"),
            )


def check_measured(model: Encoder, records: CellSet) -> dict[str, np.ndarray] | None:
    """Which genes were measured at all, and whether these are enough to say anything.

    Args:
        model: A trained model.
        records: Cells with the model's genes.

    Returns:
        bool [G] by modality, or None where all were.

    Raises:
        InputError: None of the genes that the model looks at is in these cells.
    """
    found = {name: records.measured(name) for name in seen_modalities(model, records)}
    for name, measured in found.items():
        seen = modality_input(model, name).chosen(measured)
        of = "" if name == RNA else f" of {name}"
        if not seen.any():
            raise InputError(
                f"{records.name}: none of the {len(seen)} genes{of} that the model looks at is in "
                "these cells; give cells that were measured for them, or train on all genes",
                Argument("genes", "all", of="train"),
            )
        if seen.mean() < _FEW_MEASURED:
            _log.warning(
                "%s: only %d of the %d genes%s that the model looks at were measured; the others "
                "are taken at their mean",
                records.name,
                seen.sum(),
                len(seen),
                of,
            )
    return {name: of for name, of in found.items() if not of.all()} or None


def vocabularies_of(model: Encoder) -> dict[str, Vocabulary]:
    """The genes of each modality of a model, as `convert` takes them."""
    return {one.name: Vocabulary(one.vocabulary, one.symbols) for one in model.modality_inputs}


def seen_modalities(model: Encoder, records: CellSet) -> list[str]:
    """The modalities of records that a model looks at."""
    return [name for name in looks_at(model) if name in records.modalities]


def cell_batches(
    model: Encoder, records: CellSet, batch_size: int | None = None, **options: Any
) -> Any:
    """Minibatches of cells with what a model looks at: its genes, modalities and source codes.

    Args:
        model: A trained model.
        records: Cells with the model's genes.
        batch_size: Cells of a minibatch; by default 256, or all where there are fewer.
        **options: Of `Records.dataset`.
    """
    return records.dataset(
        batch_size or min(BATCH_CELLS, records.n_cells),
        genes=chosen_genes(model),
        sources=model.sources,
        modalities=seen_modalities(model, records),
        **options,
    )


def mean_depth(data: Iterable[Batch], modality: str) -> float:
    """Mean number of molecules of cells in a modality, of the first 10,000 of minibatches."""
    total, n = 0.0, 0
    for batch in data:
        held = Minibatch(batch).modality(modality)
        if held is not None:
            row = np.asarray(batch.get(ROW, np.zeros(held.values.shape[0])))
            total += float(np.asarray(held.totals)[row >= 0].sum())
            n += int((row >= 0).sum())
        if n >= _TOTALS_OF:
            break
    return total / max(n, 1)


def check_units(model: Encoder, records: CellSet) -> None:
    """Raises InputError if a model of counts is given normalized values, or the other way."""
    words = {True: "raw counts", False: "log-normalized values"}
    mend = {True: "give it those", False: "train a model on these cells, or give it those"}
    for one in model.modality_inputs:
        if one.name not in records.modalities:
            continue
        info = records.modalities[one.name]
        counts, wants = info.scales_with_depth, one.target_sum is not None
        if counts != wants:
            where = records.name if one.name == RNA else f"{records.name}: {one.name}"
            held = "expected counts or TPM" if info.units == LINEAR else words[counts]
            raise InputError(
                f"{where}: holds {held}, but the model was trained on {words[wants]}; "
                f"{mend[wants]}",
                Argument("layer", "counts" if wants else None, of="convert"),
            )
