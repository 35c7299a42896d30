"""One modality as input of a model: its genes, and their values on the model's scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from concerto_tf._keras import keras, state_weight
from concerto_tf.errors import InputError
from concerto_tf.layers import LogNormalize
from concerto_tf.records.batch import RNA, Genes, Minibatch
from concerto_tf.records.units import TARGET_SUM

if TYPE_CHECKING:
    from concerto_tf.records import Records

#: A total to scale counts to that the cells say: the median of their own.
MEDIAN = "median"
#: Largest share of a cell's counts that genes which were not measured may stand for.
_MOST_MISSING = 0.99


class Cells(NamedTuple):
    """Normalized values of a model's input genes.

    Attributes:
        genes: Indices int32 [B, K] among the model's own genes. What is not among these became
            padding.
        values: Float [B, K].
        rows: Row of the cell that each value is of, int32 [B, K]; None where it is its own.
    """

    genes: tf.Tensor
    values: tf.Tensor
    rows: tf.Tensor | None = None


class ModalityInput:
    """One of the modalities that a model looks at.

    Args:
        name: Name of the modality.
        vocabulary: Identifiers of all G genes (or proteins, peaks), in the order of the indices.
        symbols: Their symbols, where the identifiers are something else.
        genes: Indices of the input genes, ascending; ``None`` for all. The others still count
            towards a cell's total.
        target_sum: Total to which counts are scaled before ``log1p``; ``None`` takes values
            unchanged.

    Attributes:
        gene_share: Weight [G] of the model: mean share of a cell's counts that each gene has.
    """

    gene_share: Any

    def __init__(
        self,
        name: str,
        vocabulary: Sequence[str],
        *,
        symbols: Sequence[str] | None = None,
        genes: Genes | None = None,
        target_sum: float | None = float(TARGET_SUM),
    ) -> None:
        self.name = str(name)
        self.vocabulary = tuple(map(str, vocabulary))
        self.symbols = None if symbols is None else tuple(symbols)
        self.genes = None if genes is None else tuple(int(g) for g in genes)
        self.target_sum = target_sum
        self._check()
        self.normalize = LogNormalize(target_sum, name=f"{name}_normalize")

    def _check(self) -> None:
        if not self.vocabulary:
            raise InputError(f"modality {self.name!r} has no genes; a model needs at least one.")
        if self.target_sum is not None and not (
            isinstance(self.target_sum, Real) and 0 < self.target_sum < np.inf
        ):
            raise InputError(
                "target_sum must be a positive number, or None for log-normalized values "
                f"({MEDIAN!r} where a model is made from records), not {self.target_sum!r}."
            )
        if self.genes is None:
            return
        chosen, n = np.asarray(self.genes), len(self.vocabulary)
        if not len(chosen) or chosen[0] < 0 or chosen[-1] >= n:
            raise InputError(f"genes must be indices of the {n} genes of the vocabulary.")
        if (np.diff(chosen) <= 0).any():
            raise InputError("genes must be ascending indices, each once.")

    def build(self, model: keras.Model) -> None:
        """Creates the weight that the model keeps for it."""
        name = f"{self.name}_gene_share"
        self.gene_share = state_weight(model, name, (len(self.vocabulary),))

    @property
    def n_inputs(self) -> int:
        """Number of input genes."""
        return len(self.vocabulary) if self.genes is None else len(self.genes)

    @property
    def names(self) -> np.ndarray:
        """Names to show for all genes, object [G]: symbols, or identifiers where none is known."""
        ids = np.array(self.vocabulary, object)
        if self.symbols is None:
            return ids
        symbols = np.array(self.symbols, object)
        return np.where(symbols == "", ids, symbols)

    def chosen(self, of_genes: np.ndarray) -> np.ndarray:
        """The entries [n_inputs] of an array [G] for the input genes."""
        return of_genes if self.genes is None else of_genes[list(self.genes)]

    def cells(self, batch: Minibatch) -> Cells | None:
        """Normalized values of a minibatch; None if it has nothing of this modality."""
        held = batch.modality(self.name)
        if held is None:
            return None
        genes, values, total, rows = held.genes, held.values, held.total, held.rows
        if held.measured is not None:
            # A total that misses genes is small; the counts would come out large.
            total = held.totals / (1 - self.missing(held.measured))
        if rows is not None:
            total = tf.gather(total, rows)
        values = self.normalize(values, total=total)
        if self.genes is not None:
            place = np.full(len(self.vocabulary), -1, np.int32)
            place[list(self.genes)] = np.arange(len(self.genes), dtype=np.int32)
            genes = tf.gather(tf.constant(place), genes)
            values = tf.where(genes >= 0, values, tf.zeros_like(values))
            genes = tf.maximum(genes, 0)
        return Cells(genes, values, rows)

    def measured(self, batch: Minibatch) -> tf.Tensor | None:
        """Which genes of those looked at were measured, bool [n_inputs]; None for all."""
        held = batch.modality(self.name)
        if held is None or held.measured is None:
            return None
        return held.measured if self.genes is None else tf.gather(held.measured, self.genes)

    def missing(self, measured: tf.Tensor) -> tf.Tensor:
        """Share of a cell's counts that the genes stand for which were not measured [G]."""
        shares = tf.where(measured, 0.0, self.gene_share)
        return tf.minimum(tf.reduce_sum(shares), _MOST_MISSING)

    def present(self, batch: Minibatch) -> tf.Tensor:
        """Which cells have any value in this modality, bool [B]."""
        held = batch.modality(self.name)
        return tf.zeros(tf.shape(batch.source), tf.bool) if held is None else held.present

    def get_config(self) -> dict[str, Any]:
        """The arguments but the name, of plain types."""
        return {
            "vocabulary": list(self.vocabulary),
            "symbols": None if self.symbols is None else list(self.symbols),
            "genes": None if self.genes is None else list(self.genes),
            "target_sum": self.target_sum,
        }

    def learn_share(self, records: Records) -> None:
        """Sets `gene_share` to what the genes have in records."""
        # Means are over all cells, those included that were not measured for the gene.
        share_measured = np.maximum(records.share_measured(self.name), 1e-12)
        mean = records.gene_stats_of(self.name).mean / share_measured
        self.gene_share.assign((mean / max(mean.sum(), 1e-12)).astype(np.float32))


def chosen_modalities(records: Records, wanted: Sequence[str] | None, several: bool) -> list[str]:
    """The modalities of records that a new model looks at, RNA first.

    Args:
        records: Finished records.
        wanted: Names of some; by default all that the method can look at.
        several: Whether the method looks at several; otherwise at one, RNA where there is any.

    Raises:
        InputError: The records do not have one, or the method cannot look at so many.
    """
    held = records.manifest.modalities if wanted is None else wanted
    chosen = sorted(dict.fromkeys(held), key=lambda name: name != RNA)
    if wanted is None and not several:
        chosen = chosen[:1]
    if not chosen or (len(chosen) > 1 and not several):
        raise InputError(
            f"the method looks at one modality, not at {', '.join(chosen) or 'none'}; name one, or "
            "train with method concerto"
        )
    for name in chosen:
        records.vocabulary_of(name)  # says so if there is none
    return chosen


def config_of(
    records: Records,
    modality: str,
    genes: Genes | None = None,
    target_sum: float | str | None = None,
) -> dict[str, Any]:
    """Arguments of a `ModalityInput` for the cells of records.

    Args:
        records: Finished records.
        modality: One of theirs.
        genes: Indices of the input genes; ``None`` for all.
        target_sum: Total to scale counts to, or ``median`` for the median total of the cells; by
            default what suits their depth.
    """
    vocabulary = records.vocabulary_of(modality)
    return {
        "vocabulary": vocabulary.ids,
        "symbols": vocabulary.symbols,
        "genes": genes,
        "target_sum": _target_sum_of(records, modality, target_sum),
    }


def _target_sum_of(
    records: Records, modality: str, wanted: float | str | None = None
) -> float | None:
    """Total to which a modality of records is scaled before log1p; None if it is not to be.

    RNA is scaled to what a cell of these records has: scaled to more, log1p would set a single
    count far above none, which in cells of few counts is noise.

    Args:
        records: Finished records.
        modality: One of theirs.
        wanted: The total that is asked for, or `MEDIAN`; None for what suits.
    """
    if not records.manifest.modalities[modality].scales_with_depth:
        return None
    if wanted is not None and wanted != MEDIAN:
        return wanted  # type: ignore[return-value] # other words are refused where it is used
    if modality != RNA:
        return float(TARGET_SUM)
    if wanted == MEDIAN:
        return records.typical_total
    return float(min(TARGET_SUM, max(1, round(records.typical_total))))


def described(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The modalities of a model's configuration, each with its arguments."""
    return {config["modality"]: config, **config["modalities"]}
