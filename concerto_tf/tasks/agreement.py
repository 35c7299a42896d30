"""Whether a model and records fit together: genes, modalities and units."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.records import Records, Vocabulary
from concerto_tf.records.units import LINEAR

if TYPE_CHECKING:
    from concerto_tf.models import ContrastiveModel

_log = logging.getLogger("concerto_tf")
#: Share of the genes looked at below which it is said that few were measured.
_FEW_MEASURED = 0.5


def check_agreement(model: ContrastiveModel, records: Records) -> None:
    """Raises InputError if records do not hold the model's genes, or values of another kind."""
    check_vocabulary(model, records)
    check_units(model, records)


def check_vocabulary(model: ContrastiveModel, records: Records) -> None:
    """Raises InputError if records do not hold the model's genes in the model's order."""
    for name, vocabulary in vocabularies_of(model).items():
        if name != model.modality and name not in records.manifest.modalities:
            continue
        found = records.vocabulary_of(name).ids
        if tuple(found) != vocabulary.ids:
            what = "genes" if name == "rna" else f"features of {name}"
            raise InputError(
                f"{records.name}: its {len(found)} {what} are not the {len(vocabulary)} of the "
                "model; convert the cells again with --like MODEL"
            )


def check_measured(model: ContrastiveModel, records: Records) -> np.ndarray | None:
    """Which genes were measured at all, and whether these are enough to say anything.

    Args:
        model: A trained model.
        records: Records with the model's genes.

    Returns:
        bool [G], or None where all were.

    Raises:
        InputError: None of the genes that the model looks at is in these cells.
    """
    measured = records.observed(model.modality)
    seen = measured if model.genes is None else measured[list(model.genes)]
    if not seen.any():
        raise InputError(
            f"{records.name}: none of the {model.n_inputs} genes that the model looks at is in "
            "these cells; give cells of the model's kind, or train with --genes all"
        )
    if seen.mean() < _FEW_MEASURED:
        _log.warning(
            "%s: only %d of the %d genes that the model looks at were measured; the others are "
            "taken at their mean",
            records.name,
            seen.sum(),
            len(seen),
        )
    return None if measured.all() else measured


def vocabularies_of(model: ContrastiveModel) -> dict[str, Vocabulary]:
    """The genes of each modality of a model, as `convert` takes them."""
    further = {name: Vocabulary(tuple(of["vocabulary"])) for name, of in model.modalities.items()}
    return {model.modality: Vocabulary(model.vocabulary, model.symbols), **further}


def seen_modalities(model: ContrastiveModel, records: Records) -> list[str]:
    """The modalities of records that a model looks at."""
    return [name for name in model.looks_at if name in records.manifest.modalities]


def check_units(model: ContrastiveModel, records: Records) -> None:
    """Raises InputError if a model of counts is given normalised values, or the other way."""
    kinds = {True: "raw counts", False: "values that are normalised already"}
    mend = {
        True: "give it those (for example --layer counts)",
        False: "give it those (--layer NAME), or train a model on these cells",
    }
    sums = {model.modality: model.target_sum}
    sums.update((name, of["target_sum"]) for name, of in model.modalities.items())
    for name, target_sum in sums.items():
        if name not in records.manifest.modalities:
            continue
        info = records.manifest.modalities[name]
        counts, wants = info.scales_with_depth, target_sum is not None
        if counts != wants:
            where = records.name if name == "rna" else f"{records.name}: {name}"
            held = "fractions on the scale of counts" if info.units == LINEAR else kinds[counts]
            raise InputError(
                f"{where}: holds {held}, but the model was trained on {kinds[wants]}; {mend[wants]}"
            )
