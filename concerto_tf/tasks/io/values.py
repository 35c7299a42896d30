"""Log-normalized values of cells, a part at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from concerto_tf.records import CellSet
from concerto_tf.records.batch import ROW, Minibatch
from concerto_tf.records.units import TARGET_SUM

_BATCH_CELLS = 1024


def normalized_parts(records: CellSet, modality: str) -> Iterator[tuple[np.ndarray, sp.csr_matrix]]:
    """The values of a modality of all cells, in the order of the files.

    Args:
        records: Cells that have it.
        modality: Its name.

    Yields:
        Rows of some cells in the input, int64 [m], and their values [m, genes], float32: of counts
        log1p of what is scaled to 10,000 per cell, of anything else what is stored.
    """
    info = records.modalities[modality]
    data = records.dataset(min(_BATCH_CELLS, records.n_cells), modalities=[modality])
    with records.naming_damage():
        for batch in data:
            row, [(_, held)] = batch[ROW].numpy(), Minibatch(batch)
            cells = row >= 0
            genes, values = (x.numpy()[cells] for x in (held.genes, held.values))
            if info.scales_with_depth:
                total = np.maximum(held.totals.numpy()[cells, np.newaxis], 1e-12)
                values = np.log1p(values * (TARGET_SUM / total))
            cell = np.repeat(np.arange(len(values)), values.shape[1])
            part = sp.csr_matrix(
                (values.ravel(), (cell, genes.ravel())), (len(values), info.n_genes), np.float32
            )
            part.eliminate_zeros()  # padding
            yield row[cells], part
