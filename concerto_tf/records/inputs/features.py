"""Which columns of a matrix are genes and which are something else, and what they are called."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from concerto_tf.errors import InputError, choices
from concerto_tf.records.genes.identifiers import identifier_kind
from concerto_tf.records.genes.vocabulary import Vocabulary

_log = logging.getLogger("concerto_tf")

_RNA_TYPE = "Gene Expression"
# Of Cell Ranger; where var has a column of this name with other words, all columns are taken.
_OTHER_TYPES = (
    "Antibody Capture",
    "Antigen Capture",
    "CRISPR Guide Capture",
    "Multiplexing Capture",
)


class MissingModality(InputError):
    """An input has nothing at the place that a modality was said to lie.

    Args:
        modality: Its name.
        reason: What is not there.
    """

    def __init__(self, modality: str, reason: str) -> None:
        super().__init__(f"modality {modality}: {reason}")
        self.modality, self.reason = modality, reason


# Columns of var in which the field's tools leave the other name of a gene.
_SYMBOL_COLUMNS = (
    "gene_symbols gene_symbol symbol feature_name gene_name gene_names gene_short_name"
).split()
_ENSEMBL_COLUMNS = "gene_ids gene_id ensembl_id ensembl_ids ensembl feature_id".split()


def as_texts(values: Any) -> list[str]:
    """A column of var as text, "" where missing.

    Example:
        >>> as_texts(["CD3E", None, float("nan")])
        ['CD3E', '', '']
    """
    import pandas as pd

    series = pd.Series(values)
    missing = series.isna()
    return [
        "" if gap else value.decode() if isinstance(value, bytes) else str(value)
        for value, gap in zip(series.tolist(), missing, strict=True)
    ]


def vocabulary_of(
    names: Sequence[str], columns: Sequence[str], values: Callable[[str], Any]
) -> Vocabulary:
    """The vocabulary of an AnnData's var.

    Args:
        names: var_names; they become the ids.
        columns: names of var's columns.
        values: gives a column.

    Returns:
        The vocabulary, with the genes' symbols where the names are ids, and their Ensembl ids where
        the names are symbols, if var has them.
    """
    kind = identifier_kind(names)
    if kind == "symbol":
        for column in _ENSEMBL_COLUMNS:
            texts = as_texts(values(column)) if column in columns else []
            if any(texts) and identifier_kind(texts) in ("ensembl", "ensembl_version"):
                return Vocabulary(tuple(names), ensembl=tuple(texts))
    else:
        for column in _SYMBOL_COLUMNS:
            texts = as_texts(values(column)) if column in columns else []
            if any(texts) and identifier_kind(texts) == "symbol":
                return Vocabulary(tuple(names), symbols=tuple(texts))
    return Vocabulary(tuple(names))


def rna_features(types: Sequence[str] | None, name: str) -> np.ndarray | None:
    """The columns that are RNA, where a matrix holds features of several types.

    Args:
        types: type of each feature ("Gene Expression", "Antibody Capture", ...), or None.
        name: of the input, for the log.

    Returns:
        int64 ascending, or None for all: also where types are none of Cell Ranger's.

    Raises:
        InputError: features of other types alone.
    """
    chosen = np.array(
        [i for i, kind in enumerate(types or ()) if kind == _RNA_TYPE], dtype=np.int64
    )
    if types is None or len(chosen) == len(types):
        return None
    if not len(chosen):
        if types and set(types) <= set(_OTHER_TYPES):
            raise InputError(
                f"has no features of the type {_RNA_TYPE!r}, but {', '.join(sorted(set(types)))}; "
                "give the matrix with the genes"
            )
        return None
    others = Counter(kind for kind in types if kind != _RNA_TYPE)
    listed = ", ".join(f"{n} {kind or 'untyped'}" for kind, n in others.items())
    _log.info("%s: %d genes are RNA; other features: %s", name, len(chosen), listed)
    return chosen


def typed_features(types: Sequence[str] | None, wanted: str, modality: str) -> np.ndarray:
    """The columns of one feature type.

    Args:
        types: type of each feature, or None if the input does not say.
        wanted: the type.
        modality: that asks for it, for messages.

    Returns:
        int64 ascending, at least one.

    Raises:
        MissingModality: no feature has this type.
    """
    if types is None:
        raise MissingModality(modality, "the input has no feature types")
    chosen = np.array([i for i, kind in enumerate(types) if kind == wanted], dtype=np.int64)
    if not len(chosen):
        there = sorted(set(types))
        raise MissingModality(modality, f"no feature type {wanted!r}; {choices(wanted, there)}")
    return chosen


def split_place(modality: str, place: str, accepted: Sequence[str]) -> tuple[str, str]:
    """Takes "obsm:protein" apart.

    Args:
        modality: name of the modality, for messages.
        place: what the user wrote.
        accepted: the kinds of place that this input has, such as "obsm:KEY".

    Returns:
        kind ("obsm") and key ("protein").

    Raises:
        InputError: another kind of place.
    """
    kind, _, key = place.partition(":")
    if not key or kind not in {way.partition(":")[0] for way in accepted}:
        raise InputError(
            f"modality {modality}: {place!r} is not understood here; write {' or '.join(accepted)}"
        )
    return kind, key
