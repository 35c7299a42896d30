"""The file of a vocabulary: genes, their statistics, and the cells measured for each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.records.genes.vocabulary import Vocabulary, read_table
from concerto_tf.records.manifest import ModalityInfo


@dataclass(frozen=True)
class GeneStats:
    """Statistics of each gene over all cells, taken while converting.

    Attributes:
        n_cells: int64 [genes], cells in which the gene is not zero.
        mean: float64 [genes], mean of the values scaled to 10,000 per cell, zeros included, not
            logarithmic. Values that were normalized in another way ("values") are as they are.
        variance: float64 [genes], their unbiased variance.
    """

    n_cells: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True)
class GeneTable:
    """What the file holds.

    Attributes:
        vocabulary: The genes.
        stats: Their statistics.
        measured: int64 [genes], cells whose input has the gene.
    """

    vocabulary: Vocabulary
    stats: GeneStats
    measured: np.ndarray

    @staticmethod
    def read(path: Path, info: ModalityInfo, n_cells: int) -> GeneTable:
        """Reads the file once, and checks it.

        Args:
            path: The file.
            info: What the manifest says of it.
            n_cells: Cells of the records.

        Raises:
            InputError: It is not as conversion left it.
        """
        table = read_table(path, vocabulary_content(path, info))
        return GeneTable(
            vocabulary=Vocabulary.from_table(table, path),
            stats=GeneStats(
                n_cells=np.array(table["n_cells"], np.int64),
                mean=np.array(table["mean"], np.float64),
                variance=np.array(table["variance"], np.float64),
            ),
            # All cells, where the file says nothing of it.
            measured=np.array(table.get("measured", [n_cells] * info.n_genes), np.int64),
        )


def vocabulary_content(path: Path, info: ModalityInfo) -> bytes:
    """The bytes of the file, which are as conversion left them.

    Args:
        path: The file.
        info: What the manifest says of it.

    Raises:
        InputError: They are not.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); convert again or restore the file"
        ) from error
    if hashlib.sha256(content).hexdigest() != info.sha256:
        raise InputError(f"{path}: is damaged or was changed; convert again or restore it")
    if content.count(b"\n") != info.n_genes + 1:  # one line above
        raise InputError(f"{path}: does not hold {info.n_genes} genes; convert again")
    return content
