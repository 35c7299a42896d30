"""What a task needs of the cells it is given, be they records or an input read on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from concerto_tf._paths import as_path
from concerto_tf.records.batch import Batch, Genes
from concerto_tf.records.manifest import FILE_NAME
from concerto_tf.records.reader import Records

if TYPE_CHECKING:
    import numpy as np

    from concerto_tf.records.genes.vocabulary import Vocabulary
    from concerto_tf.records.manifest import ModalityInfo


class CellSet(Protocol):
    """Cells with the genes of one vocabulary: `Records`, or `InputCells`.

    Attributes:
        name: What to call them in messages.
    """

    name: str

    @property
    def n_cells(self) -> int:
        """Number of cells."""

    @property
    def sources(self) -> list[str]:
        """Name of each source code."""

    @property
    def labels(self) -> dict[str, list[str]]:
        """Label key to the name of each code."""

    @property
    def modalities(self) -> Mapping[str, ModalityInfo]:
        """What they were measured for, by name."""

    @property
    def report(self) -> Mapping[str, Any]:
        """What there is to say of them: {"lines": [...], ...}."""

    def vocabulary_of(self, modality: str) -> Vocabulary:
        """The genes of a modality."""

    def measured(self, modality: str = ...) -> np.ndarray:
        """Which genes of a modality were measured at all, bool [genes]."""

    def dataset(
        self,
        batch_size: int,
        *,
        genes: Genes | Mapping[str, Genes] | None = None,
        modalities: Sequence[str] | None = None,
        sources: Sequence[str] | None = None,
        labels: Sequence[str] = (),
        cells: bool = False,
        packed: bool = False,
    ) -> Iterable[Batch]:
        """Each cell once, in minibatches of one shape; see `Records.dataset`."""

    def obs(self) -> dict[str, np.ndarray]:
        """What is known of the cells, in the order of the input; see `Records.obs`."""

    def naming_damage(self) -> AbstractContextManager[None]:
        """A context for reading, in which what is wrong with files is said to be that."""

    def without(self, modalities: Iterable[str]) -> CellSet:
        """The same cells, as if they had not been measured for some modalities."""


def is_records(cells: Any) -> bool:
    """Whether something is records or their folder."""
    if isinstance(cells, Records):
        return True
    return isinstance(cells, str | Path) and (as_path(cells) / FILE_NAME).is_file()
