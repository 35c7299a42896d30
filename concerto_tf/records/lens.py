"""Cells as they would look had they been measured for fewer genes, or less deeply."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from concerto_tf.records.batch import ROW, Batch, Minibatch


@dataclass(frozen=True)
class Lens:
    """What is left of cells that are looked at as others were measured.

    Attributes:
        measured: Which genes are left of each modality, bool [G] by name; all of those not named.
        depth: Share of each cell's molecules that are left, drawn at random.
        modalities: Names of the modalities of which molecules are drawn: those of counts.
        rows: Rows of the cells to look at, ascending; ``None`` for all.
        seed: Seed of the draws.

    Example:
        >>> import numpy as np
        >>> from concerto_tf.records.lens import Lens
        >>> lens = Lens({"rna": np.array([True, False, True])}, depth=0.5, modalities=("rna",))
        >>> cells = {"genes": np.array([[0, 1, 2]], "int32"), "values": np.float32([[4, 9, 600]])}
        >>> [seen] = lens.look([cells])
        >>> seen["values"][0, 1].item(), bool(250 < seen["total"][0] < 350)
        (0.0, True)
    """

    measured: Mapping[str, np.ndarray] = field(default_factory=dict)
    depth: float = 1.0
    modalities: tuple[str, ...] = ()
    rows: np.ndarray | None = None
    seed: int = 0

    def look(self, data: Iterable[Batch]) -> Iterator[Batch]:
        """The cells of minibatches that hold all genes of a cell in its own row.

        Args:
            data: Minibatches, not packed, with the genes of the whole vocabulary.

        Yields:
            Minibatches of the same shape; totals are those of what is left.
        """
        rng = np.random.default_rng(self.seed)
        for batch in data:
            seen = dict(batch)
            for name, held in Minibatch(batch):
                genes, values = np.asarray(held.genes), np.asarray(held.values, np.float32)
                if name in self.measured:
                    values = np.where(self.measured[name][genes], values, np.float32(0))
                if self.depth < 1 and name in self.modalities:
                    counts = np.rint(values).astype(np.int64)
                    values = rng.binomial(counts, self.depth).astype(np.float32)
                # A model makes up for what was not measured, of these as of other cells.
                left = replace(
                    held,
                    values=values,
                    total=values.sum(axis=1),
                    measured=self.measured.get(name, held.measured),
                )
                seen |= left.entries(name)
            if self.rows is not None:
                row = np.asarray(batch[ROW])
                seen[ROW] = np.where(np.isin(row, self.rows), row, -1)
            yield seen
