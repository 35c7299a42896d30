from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from concerto_tf.records import Records


@pytest.fixture(scope="session")
def content() -> Callable[[Path], dict[str, bytes]]:
    """The bytes of each file in a folder."""
    return lambda folder: {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="session")
def counts_of() -> Callable[[Records], np.ndarray]:
    """All cells of records in input order, dense."""

    def counts(records: Records) -> np.ndarray:
        found = np.zeros((records.n_cells, records.n_genes))
        for batch in records.dataset(64):
            for row, genes, values in zip(
                batch["row"].numpy(), batch["genes"].numpy(), batch["values"].numpy(), strict=True
            ):
                if row >= 0:
                    np.add.at(found[row], genes, values)
        return found

    return counts
