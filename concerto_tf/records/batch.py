"""The schema of a minibatch: what it holds of each cell, and under which keys.

A minibatch is a dict of tensors, as `tf.data` and Keras pass it on. B is its number of cells, K the
places of a row, G the genes of a modality's vocabulary:

========== =========== ==================================================================
key        tensor      content
========== =========== ==================================================================
genes      int32 [B,K] gene indices, ascending within a cell, padded with 0
values     float [B,K] their values, padded with 0
total      float [B]   sum of all values of a cell, those of genes left out included
offset     int32 [B,K] in packed minibatches: rows further down the cell of a value stands
measured   bool [G]    genes that these cells were measured for; without it all
row        int64 [B]   position in the input; -1 for padding, which is no cell
source     int32 [B]   code of the source; -1 for one that the model does not know
label/<k>  int64 [B]   code of label k, -1 where it is missing
cell       string [B]  barcode
========== =========== ==================================================================

The first five are of RNA; of another modality they are called ``<modality>/genes`` and so on. Only
`key` knows that. ``genes``, ``values``, ``row``, ``source``, ``label/<k>`` and ``cell`` are the
features of a cell in record files, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

#: Name of the modality that `X` of an input holds.
RNA = "rna"
#: What record files store of a modality's values of a cell.
STORED = ("genes", "values")
ROW, SOURCE, CELL = "row", "source", "cell"
LABEL = "label"

#: A minibatch as it is passed on: see above.
Batch = dict[str, Any]
#: Indices of genes in a modality's vocabulary.
Genes = Sequence[int] | np.ndarray


def key(modality: str, field: str) -> str:
    """The key of a field of a modality.

    Args:
        modality: Name of the modality.
        field: One of the fields of `ModalityBatch`.

    Example:
        >>> key(RNA, "genes"), key("protein", "genes")
        ('genes', 'protein/genes')
    """
    return field if modality == RNA else f"{modality}/{field}"


def label_key(name: str) -> str:
    """The key of a label.

    Example:
        >>> label_key("cell_type")
        'label/cell_type'
    """
    return f"{LABEL}/{name}"


def modality_of(key: str) -> str | None:
    """The modality that an entry is of; None for those that are of the cell itself.

    Example:
        >>> modality_of("values"), modality_of("protein/values"), modality_of("label/values")
        ('rna', 'protein', None)
    """
    modality, _, field = key.rpartition("/")
    if field not in _FIELDS or modality.split("/")[0] == LABEL:
        return None
    return modality or RNA


def is_numeric(key: str) -> bool:
    """Whether an entry is one that a model looks at: neither a barcode nor a label."""
    return key in (ROW, SOURCE) or modality_of(key) is not None


@dataclass(frozen=True)
class ModalityBatch:
    """What a minibatch holds of one modality; the fields are described above.

    Attributes:
        genes: int32 [B, K].
        values: Float [B, K].
        total: Float [B]; None where it is the sum of a row.
        offset: int32 [B, K]; None where every value stands in the row of its cell.
        measured: bool [G]; None where all genes were measured.
    """

    genes: tf.Tensor
    values: tf.Tensor
    total: tf.Tensor | None = None
    offset: tf.Tensor | None = None
    measured: tf.Tensor | None = None

    @property
    def rows(self) -> tf.Tensor | None:
        """Row of the cell that each value is of, int32 [B, K]; None where it is its own."""
        import tensorflow as tf

        if self.offset is None:
            return None
        return tf.range(tf.shape(self.genes)[0])[:, tf.newaxis] + self.offset

    @property
    def totals(self) -> tf.Tensor:
        """Sum of all values of each cell, float [B]."""
        import tensorflow as tf

        return tf.reduce_sum(self.values, 1) if self.total is None else self.total

    @property
    def present(self) -> tf.Tensor:
        """Which cells have any value in this modality, bool [B]."""
        import tensorflow as tf

        if self.total is None:
            return tf.reduce_any(self.values > 0, axis=1)
        return self.total > 0

    def entries(self, modality: str) -> Batch:
        """The entries of a minibatch that hold this, of the modality of that name."""
        held = {field: getattr(self, field) for field in _FIELDS}
        return {key(modality, field): x for field, x in held.items() if x is not None}


_FIELDS = tuple(field.name for field in fields(ModalityBatch))


class Minibatch:
    """Reads a minibatch by modality, source and label instead of by key.

    Args:
        batch: The dict of tensors, or a tuple that begins with it, as Keras passes on a target.

    Example:
        >>> import numpy as np
        >>> genes, values = np.zeros((2, 3), "int32"), np.ones((2, 3), "float32")
        >>> batch = Minibatch({"genes": genes, "values": values, "label/type": np.array([1, 0])})
        >>> batch.modalities, batch.modality("rna").totals.numpy().tolist()
        (['rna'], [3.0, 3.0])
        >>> batch.source.numpy().tolist(), batch.label("type").tolist()
        ([0, 0], [1, 0])
    """

    def __init__(self, batch: Mapping[str, Any] | tuple[Any, ...]) -> None:
        self.entries: Mapping[str, Any] = batch[0] if isinstance(batch, tuple) else batch

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities that it holds."""
        genes = [k for k in self.entries if k.rpartition("/")[2] == "genes"]
        return [name for k in genes if (name := modality_of(k)) is not None]

    def modality(self, name: str) -> ModalityBatch | None:
        """What it holds of a modality; None if nothing."""
        import tensorflow as tf

        held = {field: self.entries.get(key(name, field)) for field in _FIELDS}
        if held["genes"] is None:
            return None
        return ModalityBatch(
            **{field: x if x is None else tf.convert_to_tensor(x) for field, x in held.items()}
        )

    @property
    def source(self) -> tf.Tensor:
        """Source codes, int32 [B]; all cells are of the first source where it names none."""
        import tensorflow as tf

        if SOURCE in self.entries:
            return tf.cast(self.entries[SOURCE], tf.int32)
        genes = self.entries[key(self.modalities[0], "genes")]
        return tf.zeros(tf.shape(genes)[:1], tf.int32)

    @property
    def row(self) -> Any | None:
        """Positions of the cells in the input, int64 [B], -1 for padding; None if unknown."""
        return self.entries.get(ROW)

    @property
    def cell(self) -> Any:
        """Barcodes, string [B]."""
        return self.entries[CELL]

    def label(self, name: str) -> Any:
        """Codes of a label, int64 [B], -1 where it is missing."""
        return self.entries[label_key(name)]

    @property
    def numeric(self) -> Batch:
        """The entries that a model looks at, as tensors."""
        import tensorflow as tf

        return {k: tf.convert_to_tensor(x) for k, x in self.entries.items() if is_numeric(k)}

    def __iter__(self) -> Iterator[tuple[str, ModalityBatch]]:
        """Each modality by name."""
        return ((n, held) for n in self.modalities if (held := self.modality(n)) is not None)
