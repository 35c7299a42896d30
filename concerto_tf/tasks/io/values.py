"""Values of cells on the scale that is asked for, a part at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from concerto_tf.errors import Argument, InputError
from concerto_tf.records import CellSet
from concerto_tf.records.batch import ROW, Minibatch
from concerto_tf.records.units import TARGET_SUM

_BATCH_CELLS = 1024
#: Scales of the values of a modality, the first the default, and what they are.
SCALES = {
    "log": "log1p of counts scaled to 10,000 per cell",
    "clr": "centered log ratio: log1p of counts, less the mean of these over the cell's features",
    "counts": "counts",
}
#: Units of values that are no counts, which no scale changes.
AS_GIVEN = "as given"
#: Features up to which the values of a modality are kept dense.
DENSE_FEATURES = 1000


def units_of(records: CellSet, modality: str, scale: str) -> str:
    """What the values of a modality are on a scale.

    Raises:
        InputError: There is no such scale, or it does not suit the modality.
    """
    if scale not in SCALES:
        raise InputError(f"no scale {scale!r}; choose one of {', '.join(SCALES)}", "scale")
    info = records.modalities[modality]
    if scale == "clr" and info.n_genes > DENSE_FEATURES:
        raise InputError(
            f"{modality}: a centered log ratio is for some antibodies, not for {info.n_genes:,} "
            "features; take the logarithm",
            Argument("scale", "log"),
        )
    if info.scales_with_depth:
        return SCALES[scale]
    if scale != "log":
        raise InputError(
            f"{modality}: holds no counts, so there is no {scale} of it; its values are imputed as "
            "given without a scale",
            "scale",
        )
    return AS_GIVEN


def centered_log_ratio(counts: np.ndarray) -> np.ndarray:
    """Logarithms of counts [n, F] beside their mean in the cell; zeros of a cell without counts.

    Reference:
        Stoeckius et al., Nature Methods 14:865 (2017); one is added to each count.

    Example:

    >>> import numpy as np
    >>> centered_log_ratio(np.expm1([[0.0, 1.0, 5.0]])).round(3).tolist()
    [[-2.0, -1.0, 3.0]]
    """
    logarithm = np.log1p(counts)
    return logarithm - logarithm.mean(axis=1, keepdims=True)


def normalized_parts(
    records: CellSet, modality: str, scaled: bool = True
) -> Iterator[tuple[np.ndarray, sp.csr_matrix]]:
    """The values of a modality of all cells, in the order of the files.

    Args:
        records: Cells that have it.
        modality: Its name.
        scaled: Whether counts are scaled to 10,000 per cell and log1p of that is taken.

    Yields:
        Rows of some cells in the input, int64 [m], and their values [m, genes], float32; of what is
        no counts as stored.
    """
    info = records.modalities[modality]
    data = records.dataset(min(_BATCH_CELLS, records.n_cells), modalities=[modality])
    with records.naming_damage():
        for batch in data:
            row, [(_, held)] = batch[ROW].numpy(), Minibatch(batch)
            cells = row >= 0
            genes, values = (x.numpy()[cells] for x in (held.genes, held.values))
            if scaled and info.scales_with_depth:
                total = np.maximum(held.totals.numpy()[cells, np.newaxis], 1e-12)
                values = np.log1p(values * (TARGET_SUM / total))
            there = values != 0  # not padding
            ends = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
            part = sp.csr_matrix(
                (values[there], genes[there], ends), (len(values), info.n_genes), np.float32
            )
            yield row[cells], part
